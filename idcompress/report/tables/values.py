"""Metrics in words: their names, their values with units, and differences between plans."""

from __future__ import annotations

from typing import Any

from ...runs.evaluation import COSTS
from ..collect import Evaluation
from .table import MISSING

SPACE = "\N{NO-BREAK SPACE}"  # between a number and its unit
BASELINE = "_mean_colour"  # ends the name of what a flat picture scores by a metric
SAMPLERS = {
    "ddim": "DDIM",
    "ancestral": "ancestral (DDIM with eta 1)",
    "dpm_solver": "DPM-Solver++ 2M",
    "unipc": "UniPC",
    "fitted": "the fitted sampler",
}


def quality_names(evaluation: Evaluation) -> list[str]:
    """The image metrics of an evaluation, in its order."""
    return [name for name in evaluation.values if name not in COSTS]


def metric_label(name: str, row: dict[str, Any]) -> str:
    """A metric's name with its direction and unit."""
    unit = f" ({row['unit']})" if row["unit"] else ""
    return f"{name} {'↑' if row['higher_is_better'] else '↓'}{unit}"


def number(name: str, row: dict[str, Any], system: str, *, unit: bool = False) -> str:
    """One system's value of a metric."""
    if is_exact(row, system):
        return "exact"
    return formatted(name, row, row[system]) + (f"{SPACE}{row['unit']}" if unit and row["unit"] else "")


def is_exact(row: dict[str, Any], system: str) -> bool:
    """Whether every image of a system equals its reference, so that the metric has no number.

    Evaluations of earlier versions do not say so; there a missing value stays unexplained.
    """
    return system in row.get("perfect", ())


def formatted(name: str, row: dict[str, Any], value: float | str | None) -> str:
    """A number as its metric is written; "-" where there is none."""
    if value is None or value == "":
        return MISSING
    value = float(value)
    if is_rate(name):
        return f"{100 * value:.0f}{SPACE}%"
    return f"{value:.2f}" if row["unit"] == "dB" or abs(value) >= 100 else f"{value:.4f}"


def is_rate(name: str) -> bool:
    """Whether a metric counts images, so that its mean is a share of them."""
    return name.removesuffix(BASELINE).endswith(("_rate", "_retrieval"))


def share(ratio: float) -> str:
    """A ratio as a percentage."""
    return f"{100 * ratio:.3g}{SPACE}%"


def verdict(name: str, metric: dict[str, Any], difference: dict[str, Any]) -> str:
    """A paired difference: what it comes to, its mean and its interval."""
    mean, low, high = (formatted(name, metric, value) for value in (difference["mean"], *difference["interval"]))
    return f"{difference['verdict']}: {mean} [{low}, {high}]"
