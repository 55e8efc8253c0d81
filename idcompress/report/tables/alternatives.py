"""Every compressed plan beside the plain ways to spend as much, in a table and in a sentence."""

from __future__ import annotations

from typing import Any

from ..collect import Compression
from .table import Cell, Table
from .values import SAMPLERS, formatted, metric_label, number, quality_names, share, verdict

_MODELS = {"original": "full model", "compressed": "compressed model"}
_SEARCHED = {
    "paper": "The paper's own recipe (a searched gamma and DDIM, experiment=paper)",
    "uncut": "The whole model, searched like this plan, for as much work",
}


def table(compression: Compression) -> Table | None:
    """A block per step count: the compressed plan, then its alternatives; None where none was run."""
    evaluations = [e for e in compression.evaluations if e.metrics.get("alternatives")]
    if not evaluations:
        return None
    first = evaluations[0]
    names = [n for n in quality_names(first) if any(_difference(r, n) for e in evaluations for r in e.alternatives)]
    rows: list[list[Cell]] = []
    for evaluation in evaluations:
        rows.append([f"{evaluation.steps} steps"])
        values = [number(n, evaluation.values[n], "compressed") for n in names]
        rows.append(["compressed", str(evaluation.steps), share(1.0), *values])
        for row in evaluation.alternatives:
            label = _label(row)
            cells = [_cell(name, evaluation.values[name], row) for name in names]
            rows.append([label, str(row["num_inference_steps"]), share(row["gmacs_ratio"]), *cells])
    notes = [
        "Below a value: what the compressed plan is against it, with its mean difference and 95 % paired bootstrap "
        "interval over the images; no gain where the interval holds zero. The full model gets as many steps as the "
        "compressed plan's multiply-accumulates pay for.",
        "Metrics that compare with the original's result favour plans that share its sampler.",
    ]
    few = {row["num_images"] for evaluation in evaluations for row in evaluation.alternatives if "num_images" in row}
    if few:
        notes.append(f"The other plans are sampled, and compared, on {min(few)} of the images, evenly spread.")
    return Table(["plan", "steps", "MACs", *(metric_label(n, first.values[n]) for n in names)], rows, notes=notes)


def sentence(compression: Compression) -> str:
    """How many of the plain alternatives the compressed plans beat, by metric."""
    rows = [row for evaluation in compression.evaluations for row in evaluation.alternatives if "name" not in row]
    parts = []
    for name in quality_names(compression.evaluations[0]):
        verdicts = [difference["verdict"] for row in rows if (difference := _difference(row, name))]
        if verdicts:
            beaten = verdicts.count("better")
            parts.append(f"{name} {beaten} of {len(rows)}" + ("" if beaten else ", no gain"))
    text = f"Plain plans of the same cost that the compressed one beats: {'; '.join(parts) or 'none, no gain'}."
    return " ".join([text, *_of_searched_ones(compression)])


def _of_searched_ones(compression: Compression) -> list[str]:
    """What other searched plans would give, by the first metric that tells the two apart, for every step count."""
    said = []
    for evaluation in compression.evaluations:
        for row in evaluation.alternatives:
            names = [n for n in quality_names(evaluation) if _difference(row, n)] if "name" in row else []
            for name in names[:1]:
                metric = evaluation.values[name]
                value = formatted(name, metric, row["metrics"][name]["value"])
                ours, whose = number(name, metric, "compressed"), _SEARCHED[row["name"]]
                said.append(
                    f"{whose} at {row['num_inference_steps']} steps: {metric_label(name, metric)} {value}, compressed "
                    f"at {evaluation.steps} {ours}."
                )
    return said


def _label(row: dict[str, Any]) -> str:
    """An alternative's name in the table."""
    if row.get("name") == "paper":
        return "compressed model, the paper's recipe\nsearched gamma, DDIM"
    if row.get("name") == "uncut":
        return f"full model, searched like this plan\n{SAMPLERS[row['sampler']]}"
    steps = "searched" if "timesteps" in row else "uniform"
    return f"{_MODELS[row['model']]}, {steps} steps\n{SAMPLERS[row['sampler']]}"


def _cell(name: str, metric: dict[str, Any], row: dict[str, Any]) -> str:
    """An alternative's value, and the compressed plan against it."""
    cell, difference = formatted(name, metric, row["metrics"][name]["value"]), _difference(row, name)
    return f"{cell}\n{verdict(name, metric, difference)}" if difference else cell


def _difference(row: dict[str, Any], name: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = row["metrics"].get(name, {}).get("compressed_minus_this")
    return found
