"""A depth for every few steps, found by exhaustive search, against one depth for all of them"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..bench.bench import Bench
from ..config import Config
from ..console import progress
from ..core.multi_depth import Depths, Rivals, ScoredPlan, depth_plans, pareto_front, rivals
from ..core.plan import Step
from ..errors import IdcError
from ..metrics._metric import MetricValue
from ..runs import files
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..runs.timing import part
from ..stages._lab import Arm, Lab, difference, verdicts
from ..types import Batch, Chart, Series, Study

SOURCE = "Kim et al., Diffusion Model Compression for Image-to-Image Translation, ACCV 2024, Tab. 1 and S6"

Values = dict[Depths, list[MetricValue]]  # of each metric


def run(
    config: Config,
    recipe: Recipe,
    run_dir: RunDir,
    *,
    depths: list[int],
    metrics: list[str],
    quality_slack: list[float],
    cost_slack: float = 0.01,
    num_inference_steps: int = 12,
    steps_per_depth: int = 2,
    num_searched: int = 4,
    num_evaluated: int = 16,
    reference_steps: int = 50,
) -> Study:
    """Sample every plan over the search's images, choose beside each single depth, and try the choice on other images.

    A plan costs the mean of its steps' multiply-accumulates; its model is as large as its deepest step's.

    Raises:
        IdcError: a depth that the model does not have, or not one slack per metric.
    """
    if len(metrics) != len(quality_slack):
        raise IdcError(f"study.quality_slack must hold one bound for each of study.metrics, got {quality_slack}")
    lab = Lab(
        config,
        recipe,
        run_dir,
        num_searched=num_searched,
        num_evaluated=num_evaluated,
        unfitted="samples plans of several depths by DDIM",
    )
    wrong = [depth for depth in depths if not 1 <= depth <= lab.model.full_depth]
    if wrong:
        raise IdcError(f"study.depths must be between 1 and {lab.model.full_depth} for this model, got {wrong[0]}")
    full = lab.full(sampler="ddim")
    arms = {depth: lab.arm(depth, sampler="ddim") for depth in sorted(set(depths))}
    gmacs, params = full.costs
    costs = {depth: arm.costs for depth, arm in arms.items()}
    judges = {name: lab.benches["search"].metric(name) for name in metrics}
    signs = [1 if judge.higher_is_better else -1 for judge in judges.values()]

    # 1. every plan, over the search's images
    plans = depth_plans(arms, num_inference_steps, steps_per_depth)
    searched, calls = _measure("search", arms, plans, metrics, full, reference_steps)
    scored = [
        ScoredPlan(
            plan,
            tuple(sign * _mean(value) for sign, value in zip(signs, searched[plan], strict=True)),
            100 * math.fsum(costs[depth][0] for depth in plan) / len(plan) / gmacs,
        )
        for plan in plans
    ]

    # 2. what stands beside each single depth, and the best at every cost
    found = [rivals(scored, depth, quality_slack=quality_slack, cost_slack=cost_slack) for depth in arms]
    sought = [entry for beside in found for entry in _sought(beside, metrics)]
    front = pareto_front(scored)

    # 3. all of these over images that the search has not seen
    shown = {one.plan for _, one, _ in sought} | {one.plan for one in front}
    unseen, _ = _measure("evaluate", arms, sorted(shown), metrics, full, reference_steps)
    rows = []
    for words, one, single in sought:
        row: dict[str, Any] = {
            "depth": single.depth,
            "sought": words,
            "plan": "-".join(map(str, one.plan[::steps_per_depth])),
            "MACs (%)": one.cost,
            "MACs to the depth's (%)": 100 * (one.cost / single.cost - 1),
            "parameters (%)": 100 * costs[one.depth][1] / params,
        }
        for name, sign, value, base in zip(metrics, signs, unseen[one.plan], unseen[single.plan], strict=True):
            row[_with_unit(name, judges[name].unit)] = value.value
            row[f"{name} difference"] = difference(value, base, config.seed, higher_is_better=sign > 0)
        rows.append(row)

    naive = sum(map(len, plans))
    singles = [beside.single for beside in found]
    return Study(
        rows,
        [
            Chart(
                "MACs of a step (% of the full depth)",
                f"{_with_unit(metrics[0], judges[metrics[0]].unit)}, {images}",
                [
                    Series(label, [(one.cost, _mean(values[one.plan][0])) for one in of])
                    for label, of in (("best multi-depth plans", front), ("one depth for all steps", singles))
                ],
            )
            for images, values in (("the search's images", searched), ("other images", unseen))
        ],
        _outcome(rows, metrics[0]),
        [
            f"To the full model's {reference_steps} uniform steps. Plans: {num_inference_steps} uniform steps, "
            f"{steps_per_depth} in a row share a depth. Same MACs: at most {100 * cost_slack:g} % more; same quality: "
            f"at most {' and '.join(f'{s:g} less {m}' for s, m in zip(quality_slack, metrics, strict=True))}.",
            f"The exhaustive search called the network {calls:,} times per batch of images for {len(plans):,} plans: "
            f"{calls / naive:.2%} of the {naive:,} calls of one plan after the other.",
            f"Plans are chosen by the search's images, the table is of the others; {lab.images_note()}",
        ],
    )


def _measure(
    split: str, arms: dict[int, Arm], plans: Sequence[Depths], metrics: Sequence[str], full: Arm, reference_steps: int
) -> tuple[Values, int]:
    """Every metric of every plan over a split's images, and the network calls that a batch of them took.

    The trace has a row per batch, which an interrupted run reads back.
    """
    bench, trace = full.bench(split), full.lab.trace
    references, digest = full.results(split, reference_steps), files.digest(plans)
    per_image: dict[Depths, list[dict[int, float]]] = {plan: [{} for _ in metrics] for plan in plans}
    network_calls = 0
    for batch in bench.batches():
        key = {"split": split, "start": batch[0], "plans": digest}
        row = trace.find(**key)
        if row is None:
            row = trace.append({**key, **_sample(bench, full, arms, plans, metrics, references[list(batch)], batch)})
        examples = [bench.examples[position] for position in batch]
        network_calls = row["network_calls"]
        for plan, found in zip(plans, row["values"], strict=True):
            for known, values in zip(per_image[plan], found, strict=True):
                known.update({e.index: v for e, v in zip(examples, values, strict=True) if v is not None})
    for plan, of in per_image.items():
        for name, known in zip(metrics, of, strict=True):
            if not known:
                raise IdcError(f"study.metrics: {name} has no number for the depths {plan}; choose another")
    means = {plan: [MetricValue(math.fsum(v.values()) / len(v), v) for v in of] for plan, of in per_image.items()}
    return means, network_calls


def _sample(
    bench: Bench,
    full: Arm,
    arms: dict[int, Arm],
    choices: Sequence[Depths],
    metrics: Sequence[str],
    references: Tensor,
    batch: tuple[int, ...],
) -> dict[str, Any]:
    """The tree of the choices over one batch of images: {"network_calls", "values": per choice, metric and image}."""
    whole = full.plan(len(choices[0]))
    plans = {depths: replace(whole, steps=tuple(map(Step, whole.timesteps, depths))) for depths in choices}
    sampled = bench.tree(full.pipeline, list(plans.values()), batch, lambda depth: arms[depth].pipeline)
    examples = [bench.examples[position] for position in batch]
    values, network_calls = {}, 0
    for plan, images, calls in progress(sampled, f"{len(plans)} choices, {examples[0].name}", len(plans)):
        network_calls += calls
        with part("measure"):
            compared = Batch(examples, images, references)
            values[plan] = [bench.metric(name).per_image(compared) for name in metrics]
    return {"network_calls": network_calls, "values": [values[plan] for plan in plans.values()]}


def _with_unit(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _mean(value: MetricValue) -> float:
    assert value.value is not None
    return value.value


def _sought(beside: Rivals, metrics: Sequence[str]) -> list[tuple[str, ScoredPlan, ScoredPlan]]:
    """(what was sought, the plan, the single depth's) in the order of Tab. 1."""
    best = [(f"best {name} at its MACs", one) for name, one in zip(metrics, beside.same_cost, strict=True)]
    plans = [
        ("this depth at every step", beside.single),
        ("least MACs at its size and quality", beside.same_size),
        *best,
        ("least MACs at its quality", beside.same_quality),
    ]
    return [(words, one, beside.single) for words, one in plans]


def _outcome(rows: Sequence[dict[str, Any]], name: str) -> str:
    """The gain at equal cost and the saving at equal size and quality, by the first metric on unseen images."""
    column = f"{name} difference"
    best = [row[column] for row in rows if row["sought"] == f"best {name} at its MACs"]
    small = [row for row in rows if row["sought"] == "least MACs at its size and quality"]
    gains = [found["mean"] for found in best if found.get("verdict") == "better"]
    saved = -min(row["MACs to the depth's (%)"] for row in small)
    gained = f"multi-depth gains up to {max(gains, key=abs):+.2g} {name}" if gains else f"no gain in {name}"
    return (
        f"At a single depth's MACs {gained} on images that the search has not seen ({verdicts(best)} depths); at its "
        f"size and, on the search's images, its quality multi-depth saves up to {saved:.1f} % of the MACs "
        f"({verdicts([row[column] for row in small])} depths in {name} on the others)."
    )
