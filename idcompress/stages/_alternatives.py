"""What a compressed plan is worth: beside it the plain ways to spend as much, image by image."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..artifacts.recipe import Recipe
from ..core.stats import bootstrap_interval
from ..metrics._base import MetricValue
from ._bench import Bench

Row = dict[str, Any]


def measure(
    bench: Bench,
    recipe: Recipe,
    pipeline: Any,
    names: Sequence[str],
    compressed: dict[str, MetricValue],
    references: Tensor,
    gmacs: Row,
) -> list[Row]:
    """Run the plain alternatives over the same images.

    The full model gets as many steps as the multiply-accumulates of the compressed plan pay for, uniform ones by DDIM
    and by DPM-Solver++ 2M; the compressed model its own number, uniform ones by DPM-Solver++ 2M.

    Args:
        pipeline: the recipe's.
        compressed: metrics of the recipe's plan.
        references: the original's images.
        gmacs: of one step, `original` and `compressed`.

    Returns:
        per alternative `model` ("original" or "compressed"), `sampler`, `num_inference_steps`, `gmacs_ratio` to the
        plan, and per metric `value` and `compressed_minus_this` with a verdict on the compressed plan.
    """
    steps, full = recipe.num_inference_steps, bench.model.pipeline
    affordable = max(1, round(steps * gmacs["compressed"] / gmacs["original"]))
    plans = [("original", full, affordable, "ddim"), ("original", full, affordable, "dpm_solver")]
    if gmacs["compressed"] != gmacs["original"]:
        plans.append(("compressed", pipeline, steps, "dpm_solver"))
    rows = []
    for model, which, count, sampler in plans:
        config = dataclasses.replace(bench.config, sampler=sampler)
        images = dataclasses.replace(bench, config=config).images(
            which, bench.uniform(count), f"{model}, {count} steps, {sampler}"
        )
        values = bench.measure(names, images, references)
        rows.append(
            {
                "model": model,
                "sampler": sampler,
                "num_inference_steps": count,
                "gmacs_ratio": count * gmacs[model] / (steps * gmacs["compressed"]),
                "metrics": {
                    name: {
                        "value": values[name].value,
                        **paired(
                            compressed[name],
                            values[name],
                            "compressed_minus_this",
                            higher_is_better=bench.metric(name).higher_is_better,
                            seed=bench.config.seed,
                        ),
                    }
                    for name in names
                },
            }
        )
    return rows


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
