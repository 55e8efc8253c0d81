"""The summary's rows of image qualities, what there is to say below them, and what each metric means."""

from __future__ import annotations

from ... import registry
from ...runs.evaluation import SYSTEMS
from ..collect import Compression, Evaluation
from .table import Cell
from .values import BASELINE, formatted, is_exact, number, quality_names, verdict


def cells(evaluations: list[Evaluation], name: str) -> list[Cell]:
    """The original's value of a metric, then every step count's compressed and uniform one, compared."""
    found: list[Cell] = [number(name, evaluations[0].values[name], "original")]
    for evaluation in evaluations:
        row = evaluation.values[name]
        compressed, uniform = (number(name, row, system) for system in SYSTEMS[1:])
        if row["interval"] and None not in row["interval"]:
            low, high = (formatted(name, row, bound) for bound in row["interval"])
            compressed += f"\n[{low}, {high}]"
        difference = row.get("compressed_minus_uniform")
        if difference:
            uniform += f"\ncompressed {verdict(name, row, difference)}"
        found += [compressed, uniform]
    return found


def notes(evaluations: list[Evaluation], name: str) -> list[str]:
    """Why a value is missing, and where one is no better than a flat picture's."""
    return [*_missing(evaluations, name), *_without_skill(evaluations, name)]


def meanings(compression: Compression) -> list[str]:
    """What each quality is, from the metric's own file."""
    lines = []
    for name in quality_names(compression.evaluations[0]):
        row = compression.evaluations[0].values[name]
        what = f"{registry.summary('metric', name)}." if name in registry.names("metric") else ""
        compares = f"Compares {row['compares']}." if "compares" in row else ""
        if what or compares:
            lines.append(f"{name}: {what} {compares}".strip())
    return lines


def _missing(evaluations: list[Evaluation], name: str) -> list[str]:
    found = []
    for evaluation in evaluations:
        row = evaluation.values[name]
        for system, note in row.get("notes", {}).items():
            ending = ": perfect by definition" if is_exact(row, system) else ""
            found.append(f"{name}, {system} at {_steps(evaluation, system)} steps: {note}{ending}.")
    return found


def _without_skill(evaluations: list[Evaluation], name: str) -> list[str]:
    found = []
    for evaluation in evaluations:
        flat = evaluation.values.get(f"{name}{BASELINE}", {}).get("original")
        for system in SYSTEMS[:2]:
            value = evaluation.values[name][system]
            if flat is not None and value is not None and value <= flat:
                found.append(
                    f"{name}, {system} at {_steps(evaluation, system)} steps: not above what the input's mean colour, "
                    "painted everywhere, scores; it shows no skill."
                )
    return found


def _steps(evaluation: Evaluation, system: str) -> int:
    return evaluation.original_steps if system == "original" else evaluation.steps
