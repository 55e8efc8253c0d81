"""Retrieval or success by instruction, where the images carry tags that say which is easy and which is hard."""

from __future__ import annotations

from typing import Any

from ...runs.evaluation import SYSTEMS
from ..collect import Compression, Evaluation
from .table import MISSING, Cell, Table
from .values import BASELINE, formatted, is_rate, metric_label, quality_names

Tags = tuple[str, ...]


def table(compression: Compression) -> Table | None:
    """Edits that succeed by instruction, over images of the same tags; another metric's mean where that is unknown.

    None where the images have no tags or no values of their own.
    """
    evaluations = compression.evaluations
    first = evaluations[0]
    if not any(row["tags"] for row in first.rows):
        return None
    rates = [name for name in quality_names(first) if is_rate(name)]
    baselines = [f"{name}{BASELINE}" for name in rates if f"{name}{BASELINE}" in first.values]
    names = rates or [n for n in quality_names(first) if any(row.get(f"{n}.compressed") for row in first.rows)][:1]
    if not names:
        return None
    columns = [(f"original\n{first.original_steps} steps", first, "original", names)]
    for evaluation in evaluations:
        columns += [(f"{system}\n{evaluation.steps} steps", evaluation, system, names) for system in SYSTEMS[1:]]
    if baselines:
        columns.append(("mean colour\nof the input", first, "original", baselines))

    def row(label: str, tags: Tags) -> list[Cell]:
        """Means over the images whose tags begin with these."""
        cells: list[Cell] = [label, str(len(_tagged(first, tags)))]
        for _, evaluation, system, measured in columns:
            keys = [f"{name}.{system}" for name in measured]
            values = [float(r[key]) for r in _tagged(evaluation, tags) for key in keys if r.get(key)]
            cells.append(_cell(values, names[0], first.values[names[0]], counts=bool(rates), all_of=len(tags) == 1))
        return cells

    tags = list(dict.fromkeys(tuple(r["tags"].split()) for r in first.rows if r["tags"]))
    rows: list[list[Cell]] = []
    for group in dict.fromkeys(words[:1] for words in tags):
        rows.append(row(f"all {group[0]}", group))
        members = [words for words in tags if words[:1] == group and words != group]
        rows += [row(f"{group[0]}: {' '.join(words[1:]).replace('_', ' ')}", words) for words in members]
    what = "Share of images that succeed" if rates else f"Mean {metric_label(names[0], first.values[names[0]])}"
    notes = [f"{what}, by instruction ({', '.join(names)})."]
    if baselines:
        notes.append("Mean colour: what a flat picture scores by the same criterion; success means what lies above it.")
    return Table(["instruction", "images", *(label for label, *_ in columns)], rows, notes=notes)


def _tagged(evaluation: Evaluation, tags: Tags) -> list[dict[str, str]]:
    return [row for row in evaluation.rows if tuple(row["tags"].split())[: len(tags)] == tags]


def _cell(values: list[float], name: str, row: dict[str, Any], *, counts: bool, all_of: bool) -> str:
    """A mean; of successes the count, and for a whole group of instructions both."""
    if not values:
        return MISSING
    mean, count = formatted(name, row, sum(values) / len(values)), f"{sum(values):.0f} of {len(values)}"
    if not counts:
        return mean
    return f"{mean}\n{count}" if all_of else count
