"""Pictures side by side: a few examples with all that was made of them, and those that the model does worst on."""

from __future__ import annotations

from ...runs.evaluation import SYSTEMS
from ..collect import Compression, Evaluation
from ..figures import image_picture
from .table import MISSING, Cell, Table
from .values import formatted, metric_label, quality_names

_KINDS = {"image": "input", "condition": "condition", "target": "true result"}
_WORST = 5  # images that are shown
_GRID_PX = 830  # of the page, for the images of a row


def grid(compression: Compression) -> Table:
    """A few examples, all that was made of each side by side."""
    evaluations = compression.evaluations
    first = evaluations[0]
    many = f"{first.original_steps} steps"
    columns: list[tuple[str, Evaluation, str]] = [(label, first, kind) for kind, label in _KINDS.items()]
    columns += [(f"original\n{many}", first, "original"), (f"depth-skipped\n{many}", first, "depth_skipped")]
    for evaluation in evaluations:
        columns += [(f"{system}\n{evaluation.steps} steps", evaluation, system) for system in SYSTEMS[1:]]
    columns = [c for c in columns if any(c[1].image(c[2], name) for name in compression.examples)]
    width = min(160, max(100, _GRID_PX // len(columns)))
    prompts = {row["name"]: row["prompt"] for row in first.rows}
    rows: list[list[Cell]] = []
    for name in compression.examples:
        cells = [_image(evaluation, kind, name, label, width) for label, evaluation, kind in columns]
        rows.append([f"{prompts[name]}\n{name}", *cells])
    return Table(["prompt", *(label for label, _, _ in columns)], rows)


def worst(evaluation: Evaluation) -> Table | None:
    """The images that the compressed model does worst on by the first metric; None where no image has a value."""
    for name in quality_names(evaluation):
        metric = evaluation.values[name]
        rows = [row for row in evaluation.rows if row.get(f"{name}.compressed")]
        rows.sort(key=lambda r: float(r[f"{name}.compressed"]), reverse=not metric["higher_is_better"])
        if rows:
            break
    else:
        return None
    label = metric_label(name, metric)
    header = ["image", "prompt", f"{label}\ncompressed", f"{label}\nuniform", "original", "compressed"]
    cells: list[list[Cell]] = []
    for row in rows[:_WORST]:
        values = [formatted(name, metric, row.get(f"{name}.{system}")) for system in SYSTEMS[1:]]
        images = [_image(evaluation, system, row["name"], system) for system in SYSTEMS[:2]]
        cells.append([row["name"], row["prompt"], *values, *images])
    return Table(header, cells, text_columns=2)


def _image(evaluation: Evaluation, kind: str, name: str, label: str, width: int = 96) -> Cell:
    path = evaluation.image(kind, name)
    return MISSING if path is None else image_picture(path, f"{name}: {label.replace(chr(10), ', ')}", width)
