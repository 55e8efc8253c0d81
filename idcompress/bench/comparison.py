"""What a compressed plan is worth: beside it the plain ways to spend as much, image by image."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..core.plan import Plan
from ..core.stats import bootstrap_interval
from ..metrics._metric import ImageMetric, MetricValue
from ..types import Example
from .bench import Bench
from .costs import called_steps
from .translate import uniform_plan

Row = dict[str, Any]

# The plain samplers that get the compressed plan's cost to spend on the whole model.
PLAIN_SAMPLERS = ("ddim", "dpm_solver")


@dataclass(frozen=True)
class System:
    """A way to make images: a model and a plan.

    Attributes:
        pipeline: the whole one, or a recipe's.
        plan: what is sampled.
        reference: name of the system whose images it is compared with. A system that is its own reference is the whole
            model at uniform steps, and its images are cached on disk.
    """

    pipeline: Any
    plan: Plan
    reference: str = "original"

    def images(self, bench: Bench, name: str, positions: Sequence[int] | None = None) -> Tensor:
        """Of a bench's examples, or some of them, (N, 3, H, W), float32 in [0, 1]; `name` is the system's own."""
        if name == self.reference:
            return bench.references(None, self.plan, name, positions)
        return bench.images(self.pipeline, self.plan, name, positions)


def affordable_steps(num_inference_steps: int, cost: float, other_cost: float) -> int:
    """The equal-cost rule: how many steps of another model cost as much as this model's, rounded, at least one.

    Args:
        cost, other_cost: of one step of either, in one unit: multiply-accumulates throughout this program.
    """
    return max(1, round(num_inference_steps * cost / other_cost))


def plain_systems(steps: int, gmacs: Row, calls: float | None = None) -> list[Row]:
    """The plain alternatives to a compressed plan of so many steps, without their metrics.

    The whole model gets as many steps as the multiply-accumulates of the compressed plan pay for, uniform ones by DDIM
    and by DPM-Solver++ 2M; the compressed model its own number, uniform ones by DPM-Solver++ 2M.

    Args:
        gmacs: of one step, `original` and `compressed`, and `uniform` of the compressed model where nothing is left
            out, if a plan's steps differ.
        calls: calls of the networks per guidance pass, where they are not one for each step.

    Returns:
        per alternative `model` ("original" or "compressed"), `sampler`, `num_inference_steps`, and `gmacs_ratio` to
        the plan.
    """
    spent = (steps if calls is None else calls) * gmacs["compressed"]
    of_a_step = {"original": gmacs["original"], "compressed": gmacs.get("uniform", gmacs["compressed"])}
    affordable = affordable_steps(1, spent, gmacs["original"])
    found = [("original", sampler, affordable) for sampler in PLAIN_SAMPLERS]
    if of_a_step["compressed"] != of_a_step["original"]:
        found.append(("compressed", "dpm_solver", steps))
    return [
        {
            "model": model,
            "sampler": sampler,
            "num_inference_steps": count,
            "gmacs_ratio": count * of_a_step[model] / spent,
        }
        for model, sampler, count in found
    ]


def searched_row(name: str, model: str, other: Plan, plan: Plan, gmacs: Row) -> Row:
    """An alternative that was searched, too, without its metrics: as `plain_systems` has them, with its `name` and its
    `timesteps`.

    Args:
        model: "compressed", or "original", the whole one.
        gmacs: of one step of either.
    """
    return {
        "name": name,
        "model": model,
        "sampler": other.sampler,
        "num_inference_steps": len(other),
        "timesteps": list(other.timesteps),
        "gmacs_ratio": len(called_steps(other)) * gmacs[model] / (len(called_steps(plan)) * gmacs["compressed"]),
    }


def system_of(row: Row, bench: Bench, pipeline: Any, plan: Plan) -> System:
    """How a plain alternative is run; pipeline and plan are the compressed model's."""
    which = bench.model.pipeline if row["model"] == "original" else pipeline
    process, steps = bench.model.process, int(row["num_inference_steps"])
    return System(which, uniform_plan(process, steps, sampler=row["sampler"], guidance=plan.guidance))


def words(row: Row) -> str:
    """An alternative's name."""
    kind = "searched" if "timesteps" in row else "uniform"
    return f"{row['model']} model, {row['num_inference_steps']} {kind} steps by {row['sampler']}"


def at_uniform_steps(plan: Plan, bench: Bench, num_inference_steps: int) -> Plan:
    """The plan's sampler and guidance over evenly spaced timesteps that compute everything."""
    return uniform_plan(bench.model.process, num_inference_steps, sampler=plan.sampler, guidance=plan.guidance)


def paired(value: MetricValue, other: MetricValue, key: str, *, higher_is_better: bool, seed: int) -> Row:
    """The difference, image by image, where both have a value: {key: {"mean", "interval", "num_images", "verdict"}}.

    The verdict is "better" or "worse" where the bootstrap interval leaves zero out, else "no gain". Empty where no
    image differs.
    """
    differences = [value.per_image[i] - other.per_image[i] for i in value.per_image if i in other.per_image]
    if not any(differences):
        return {}
    low, high = bootstrap_interval(differences, seed=seed)
    verdict = "no gain" if low <= 0 <= high else "better" if (low > 0) is higher_is_better else "worse"
    mean = math.fsum(differences) / len(differences)
    return {key: {"mean": mean, "interval": [low, high], "num_images": len(differences), "verdict": verdict}}


def against(
    compressed: Mapping[str, MetricValue],
    other: Mapping[str, MetricValue],
    metrics: Mapping[str, ImageMetric],
    *,
    seed: int,
) -> dict[str, Row]:
    """An alternative's values, and the compressed plan against them, by metric."""
    return {
        name: {"value": value.value}
        | paired(
            compressed[name],
            value,
            "compressed_minus_this",
            higher_is_better=metrics[name].higher_is_better,
            seed=seed,
        )
        for name, value in other.items()
    }


def only(value: MetricValue, some: Collection[int] | None) -> MetricValue:
    """A metric over some images alone, by the examples' indices; None for all of them."""
    if some is None:
        return value
    kept = {index: number for index, number in value.per_image.items() if index in some}
    return replace(value, value=math.fsum(kept.values()) / len(kept) if kept else None, per_image=kept)


def kinds_of(examples: Sequence[Example]) -> dict[str, set[int]]:
    """Kinds of input, by the examples' first tags, with their indices; empty where there is one kind alone."""
    kinds: dict[str, set[int]] = {}
    for example in examples:
        for tag in example.tags[:1]:
            kinds.setdefault(tag, set()).add(example.index)
    return kinds if len(kinds) > 1 else {}
