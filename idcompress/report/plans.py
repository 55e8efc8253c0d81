"""Plans under budgets, from their metrics.json or recipe: what each step computes, and what the certificate says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..types import Chart, Series
from .tables.table import MISSING, Cell, Table
from .tables.values import formatted, metric_label, share, verdict

Row = dict[str, Any]
ALT = "quality over multiply-accumulates: the searched plans and the plain solvers of the full model"
NOTES = [
    "Below a value: what the plan is against it, with its mean difference and 95 % paired bootstrap interval over the "
    "images; no gain where the interval holds zero.",
    "The full model's solvers get as many steps as the budget pays for, at least one. The worst tenth is that of each "
    "row's own images.",
]


def steps_table(plan: Row, recipe_depth: int | None = None) -> Table:
    """What is computed at every step of a plan."""
    passes = {"all": "all", "held": "the first, and an earlier difference", "text": "the first alone"}
    stored = "all stored" if recipe_depth is None else f"all {recipe_depth}"
    skips = any(step.get("skip") for step in plan["steps"])
    header = ["timestep", "levels", "guidance passes", "side networks", *(["layers passed by"] if skips else [])]
    rows: list[list[Cell]] = [
        [
            f"{step['timestep']:g}",
            stored if step["depth"] is None else str(step["depth"]),
            passes[step["passes"]],
            "called" if step["refresh"] else "held",
            *([", ".join(step.get("skip", ())) or "none"] if skips else []),
        ]
        for step in plan["steps"]
    ]
    fill = {
        "zero": "zeros",
        "hold": "the last hidden state there",
        "linear": "the last hidden states there, extrapolated",
    }
    notes = [f"In place of levels that a step leaves out: {fill[plan['fill']]}. Sampler: {plan['sampler']}."]
    return Table(header, rows, text_columns=len(header), notes=notes)


def table(certificate: Row) -> Table:
    """The plan and everything that it is set beside, a column for each reference, kind of input and the worst tenth."""
    metric = certificate
    name, references, kinds = certificate["metric"], certificate["references"], list(certificate["kinds"])
    label = metric_label(name, metric)
    header = ["", "steps", "MACs", *(f"{label}\n{reference}" for reference in references)]
    header += [*(f"{kind}\n{references[0]}" for kind in kinds), f"worst tenth\n{references[0]}"]

    def cell(found: Row) -> str:
        if found.get("perfect"):
            return "exact"
        minus, text = found.get("plan_minus_this"), formatted(name, metric, found["value"])
        return f"{text}\n{verdict(name, metric, minus)}" if minus else text

    def cells(found: Row) -> list[Cell]:
        first = found[references[0]]
        return [
            *(cell(found[reference]) for reference in references),
            *(cell(first["by_kind"][kind]) for kind in kinds),
            formatted(name, metric, first["worst_tenth"]),
        ]

    rows: list[list[Cell]] = [["the plan", MISSING, share(certificate["macs_ratio"]), *cells(certificate["plan"])]]
    for rival in certificate["rivals"]:
        model = f"{rival['label']}\n{'full model' if rival['plain'] else 'searched under the same budget'}"
        rows.append([model, str(rival["num_inference_steps"]), share(rival["macs_ratio"]), *cells(rival["against"])])
    return Table(header, rows, notes=NOTES)


def charts(rows: Sequence[Row]) -> list[Chart]:
    """Quality over work of certified plans beside the plain solvers: all images, and every kind of input apart."""
    certificates = [row["certificate"] for row in rows if "certificate" in row]
    if not certificates:
        return []
    first = certificates[0]
    reference, unit = first["references"][0], f" ({first['unit']})" if first["unit"] else ""

    def value(found: Row, kind: str | None) -> float | None:
        number: float | None = (found if kind is None else found["by_kind"][kind])["value"]
        return number

    def line(label: str, found: list[tuple[float, float | None]]) -> Series:
        return Series(label, sorted({(100 * x, y) for x, y in found if y is not None}))

    def chart(kind: str | None) -> Chart:
        plans = [(c["macs_ratio"], value(c["plan"][reference], kind)) for c in certificates]
        lines = [line("the plan", plans)]
        for label in dict.fromkeys(rival["label"] for c in certificates for rival in c["rivals"]):
            rivals = [rival for c in certificates for rival in c["rivals"] if rival["label"] == label]
            lines.append(line(label, [(r["macs_ratio"], value(r["against"][reference], kind)) for r in rivals]))
        images = f"{first['kinds'][kind]} {kind}" if kind else f"all {first['num_images']} images"
        return Chart(f"multiply-accumulates, % of {reference}", f"{first['metric']}{unit}, {images}", lines)

    return [chart(kind) for kind in (None, *first["kinds"])]
