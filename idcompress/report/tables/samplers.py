"""Original and compressed by every sampler that the task reports."""

from __future__ import annotations

from ..collect import Compression
from .table import Cell, Table
from .values import SAMPLERS, formatted, metric_label, quality_names


def table(compression: Compression) -> Table | None:
    """A block per plan, a row per sampler; None where the task reports none."""
    first = compression.evaluations[0]
    if not first.metrics.get("samplers"):
        return None
    names = quality_names(first)
    rows: list[list[Cell]] = []
    plans = [(first, "original", first.original_steps)]
    plans += [(evaluation, "compressed", evaluation.steps) for evaluation in compression.evaluations]
    for evaluation, system, steps in plans:
        rows.append([f"{system}, {steps} steps"])
        for sampler, values in evaluation.metrics["samplers"].items():
            cells = [formatted(name, first.values[name], values[name][system]) for name in names]
            rows.append([SAMPLERS[sampler], *cells])
    note = "What is compared with the original's result is compared with that of the same sampler, with the same noise."
    return Table(["sampler", *(metric_label(name, first.values[name]) for name in names)], rows, notes=[note])
