"""The summary's rows of costs: sizes, computation and time, with shares of the original's."""

from __future__ import annotations

from ...runs.evaluation import SYSTEMS
from ..collect import Evaluation
from .table import Cell
from .values import share

_LABELS = {
    "params": "parameters, in the files",
    "params_paper": "parameters, paper's rule: without time embedding",
    "weights_mb": "weights of the networks (MB)",
    "gmacs": "MACs of one network call, convolutions and linear layers (GMAC)",
    "gmacs_with_attention": "the same with attention products (GMAC)",
    "num_inference_steps": "steps",
    "network_calls": "calls of the networks per image, one for each guidance branch",
}
_TOTAL_LABELS = {
    "gmacs": "network calls \N{MULTIPLICATION SIGN} MACs, convolutions and linear layers (GMAC)",
    "gmacs_with_attention": "network calls \N{MULTIPLICATION SIGN} MACs, with attention products (GMAC)",
}


def rows(evaluations: list[Evaluation]) -> list[list[Cell]]:
    """Sizes and computation: of one call, and of all calls of an image."""
    known = evaluations[0].values
    found: list[list[Cell]] = [
        [label, *_cells([_by_system(e, name) for e in evaluations])] for name, label in _LABELS.items() if name in known
    ]
    calls = "network_calls" if "network_calls" in known else "num_inference_steps"
    for name, label in _TOTAL_LABELS.items():
        totals = [_products(_by_system(e, name), _by_system(e, calls)) for e in evaluations]
        found.append([label, *_cells(totals)])
    return found


def latency_rows(evaluations: list[Evaluation]) -> list[list[Cell]]:
    """Time as a ratio, as far as it was measured."""
    latency = evaluations[0].values.get("latency_ms", {})
    found: list[list[Cell]] = []
    if latency:
        found.append(["latency end to end, as a ratio measured in one run", *_latency_cells(evaluations, "ratio")])
    if "denoising_ratio" in latency:
        found.append(["of it denoising alone, as a ratio", *_latency_cells(evaluations, "denoising_ratio")])
    return found


def latency_notes(evaluations: list[Evaluation]) -> list[str]:
    """How it was measured, what its stages took, and milliseconds where the networks are wide enough for them."""
    if "latency_ms" not in evaluations[0].values:
        return ["Latency was not measured (evaluate.latency=false)."]
    found = [(evaluation, evaluation.values["latency_ms"]) for evaluation in evaluations]
    notes = ["Latency: original and compressed took turns in one run; median of the pairs' ratios."]
    for evaluation, row in found:
        stages = {
            system: ", ".join(f"{name} {share(part)}" for name, part in parts.items())
            for system, parts in row.get("stages", {}).items()
        }
        if stages:
            notes.append(
                f"Stages in the original's time: original {stages['original']}; compressed at {evaluation.steps} steps "
                f"{stages['compressed']}."
            )
    medians = [
        f"{row['compressed']:.4g} ms against {row['original']:.4g} ms at {evaluation.steps} steps"
        for evaluation, row in found
        if row["original"] is not None
    ]
    told = f"Medians on this machine, {found[0][1]['unit'].removeprefix('ms ')}: {'; '.join(medians)}."
    return [*notes, told if medians else "Narrower than Stable Diffusion, so no milliseconds are told."]


def _by_system(evaluation: Evaluation, name: str) -> dict[str, float]:
    return {system: float(evaluation.values[name][system]) for system in SYSTEMS}


def _products(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {system: a[system] * b[system] for system in SYSTEMS}


def _cells(costs: list[dict[str, float]]) -> list[Cell]:
    """The original's cost, then every step count's compressed and uniform one with its share of the original's."""
    base = costs[0]["original"]
    cells: list[Cell] = [_amount(base)]
    for cost in costs:
        cells += [f"{_amount(cost[system])}\n{share(cost[system] / base)}" for system in SYSTEMS[1:]]
    return cells


def _latency_cells(evaluations: list[Evaluation], name: str) -> list[Cell]:
    cells: list[Cell] = ["1"]
    for evaluation in evaluations:
        row = evaluation.values["latency_ms"]
        low, high = row["ratio_quartiles"]
        quartiles = f"\nquartiles {low:.3g} to {high:.3g}" if name == "ratio" else ""
        cells += [f"{row[name]:.3g}{quartiles}", "the same"]
    return cells


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 10_000 else f"{value:.4g}"
