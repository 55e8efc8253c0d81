"""The outcome: one sentence, and the table of original against compressed and uniform at every step count."""

from __future__ import annotations

from ...runs.evaluation import SYSTEMS
from ..collect import Compression, Evaluation
from . import costs, qualities
from .table import Cell, Table
from .values import metric_label, number, quality_names, share


def sentence(compression: Compression) -> str:
    """The outcome in one sentence."""
    first = compression.evaluations[0]
    if first.recipe.is_full and first.steps == first.original_steps:
        return f"The uncompressed model at {first.steps} uniform steps; nothing was compressed."
    clauses = [_cost_clause(e, is_first=e is first) + _quality_clause(compression, e) for e in compression.evaluations]
    kept = share(first.values["params"]["ratio"])
    return f"The compressed model ({depth_words(compression)}) keeps {kept} of the parameters; {'; '.join(clauses)}."


def depth_words(compression: Compression) -> str:
    """ "depth 9 of 13", as far as it is known."""
    depth = compression.evaluations[0].recipe.depth
    search = compression.stage("depth_search")
    if depth is None:
        return compression.evaluations[0].recipe.kept
    full = search.metrics.get("full_depth") if search else None
    return f"depth {depth} of {full}" if full else f"depth {depth}"


def table(compression: Compression) -> Table:
    """Original against compressed and uniform at every step count: costs, then qualities."""
    evaluations = compression.evaluations
    original = evaluations[0]
    header = ["", f"original\n{original.original_steps} steps"]
    for evaluation in evaluations:
        header += [f"{system}\n{evaluation.steps} steps" for system in SYSTEMS[1:]]
    rows: list[list[Cell]] = [["Cost"], *costs.rows(evaluations), *costs.latency_rows(evaluations)]
    notes = costs.latency_notes(evaluations)
    rows.append([f"Quality, mean over {original.metrics['num_images']} images [95 % bootstrap interval]"])
    for name in quality_names(original):
        rows.append([metric_label(name, original.values[name]), *qualities.cells(evaluations, name)])
        notes += qualities.notes(evaluations, name)
    if any(compression.is_uniform(e) for e in evaluations):
        notes.append("Where the recipe's own timesteps are uniform, both columns show the same images.")
    notes.append(
        "Percentages are shares of the original. Uniform: the same pruned model at as many evenly spaced timesteps, "
        "so its costs are the same. ↑ higher is better, ↓ lower is better."
    )
    return Table(header, rows, notes=list(dict.fromkeys(notes)))


def _cost_clause(evaluation: Evaluation, *, is_first: bool) -> str:
    """What a step count costs of the original; the first clause says of what the percentages are."""
    values = evaluation.values
    macs = values["gmacs"]["ratio"] * values["num_inference_steps"]["ratio"]
    spent = [(share(macs), "the multiply-accumulates")]
    if "latency_ms" in values:
        spent.append((share(values["latency_ms"]["ratio"]), "the time"))
    if is_first:
        words = " and ".join(f"{part} of {what}" for part, what in spent)
        return f"at {evaluation.steps} steps instead of {evaluation.original_steps} it takes {words} per image"
    return f"at {evaluation.steps} steps {' and '.join(part for part, _ in spent)}"


def _quality_clause(compression: Compression, evaluation: Evaluation) -> str:
    """The first metric that has a number, beside that of uniform steps; "" where none has one."""
    values = evaluation.values
    name = next((n for n in quality_names(evaluation) if values[n]["compressed"] is not None), None)
    if name is None:
        return ""
    clause = f", with {name} {number(name, values[name], 'compressed', unit=True)}"
    if values[name]["uniform"] is not None and not compression.is_uniform(evaluation):
        verdict = values[name].get("compressed_minus_uniform", {}).get("verdict", "better")
        words = {"better": "", "worse": ", which is better", "no gain": ", no gain"}[verdict]
        clause += f" (uniform steps: {number(name, values[name], 'uniform', unit=True)}{words})"
    return clause
