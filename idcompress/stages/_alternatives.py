"""What a compressed plan is worth: beside it the plain ways to spend as much, image by image."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..artifacts.recipe import Recipe
from ..core.stats import bootstrap_interval
from ..metrics._base import MetricValue
from ._bench import Bench

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A way to make images: a model, a list, a sampler.

    Attributes:
        pipeline: the full one, or a recipe's.
        reference: the plan whose images it is compared with; one that is its own is the full model at uniform steps,
            whose results are kept on disk.
    """

    pipeline: Any
    timesteps: tuple[int, ...]
    sampler: str
    reference: str = "original"

    def images(self, bench: Bench, name: str) -> Tensor:
        """Of a bench's examples, (N, 3, H, W), float32 in [0, 1]; `name` is the plan's own."""
        bench = dataclasses.replace(bench, config=dataclasses.replace(bench.config, sampler=self.sampler))
        if name == self.reference:
            return bench.references(None, len(self.timesteps), name)
        return bench.images(self.pipeline, self.timesteps, name)


def rows(recipe: Recipe, gmacs: Row) -> list[Row]:
    """The plain alternatives to a recipe, without their metrics.

    The full model gets as many steps as the multiply-accumulates of the compressed plan pay for, uniform ones by DDIM
    and by DPM-Solver++ 2M; the compressed model its own number, uniform ones by DPM-Solver++ 2M.

    Args:
        gmacs: of one step, `original` and `compressed`.

    Returns:
        per alternative `model` ("original" or "compressed"), `sampler`, `num_inference_steps`, and `gmacs_ratio` to
        the plan.
    """
    steps = recipe.num_inference_steps
    affordable = max(1, round(steps * gmacs["compressed"] / gmacs["original"]))
    plans = [("original", "ddim", affordable), ("original", "dpm_solver", affordable)]
    if gmacs["compressed"] != gmacs["original"]:
        plans.append(("compressed", "dpm_solver", steps))
    return [
        {
            "model": model,
            "sampler": sampler,
            "num_inference_steps": count,
            "gmacs_ratio": count * gmacs[model] / (steps * gmacs["compressed"]),
        }
        for model, sampler, count in plans
    ]


def plan(row: Row, bench: Bench, pipeline: Any) -> Plan:
    """How an alternative is run; `pipeline` is the recipe's."""
    which = bench.model.pipeline if row["model"] == "original" else pipeline
    return Plan(which, tuple(bench.uniform(row["num_inference_steps"])), row["sampler"])


def words(row: Row) -> str:
    """An alternative's name."""
    return f"{row['model']} model, {row['num_inference_steps']} uniform steps by {row['sampler']}"


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
