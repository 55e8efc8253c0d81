"""The page, the tables and the figures of a comparison, from its compare.json and the pictures beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..types import Chart, Series
from .figures import Picture, image_picture
from .page import TITLE, Block, Heading, Items, Text
from .tables.table import MISSING, Cell, Table
from .tables.values import formatted, metric_label, share, verdict

Row = dict[str, Any]
ALL = "all images"
_NOTES = (
    "Below a value: the row against the first one, with the mean difference and its 95 % paired bootstrap interval "
    "over the images; no gain where the interval holds zero.",
    "MACs are those of all network calls of an image, as a share of the reference's; bytes are those of the weights "
    "that are called at every step.",
    "A search's work is counted as if its row stood alone, the many-step run that it compares with included.",
)


def compose(value: Row, pictures: Sequence[Picture], folder: Path) -> list[Block]:
    """The page's blocks: the answer, the figures, the tables, the pictures, and what all of it is from.

    Args:
        value: what compare.json holds.
        pictures: of `charts`.
        folder: holds images/.
    """
    blocks: list[Block] = [Heading(f"{value['title']}", TITLE), Text(sentence(value), lead=True)]
    blocks += [Heading("Quality over cost"), *pictures] if pictures else []
    for name in value["blocks"]:
        blocks += [Heading(f"Table: {name}" if name else "Table"), table(value, name)]
    for kind in kinds(value)[1:]:
        blocks += [Heading(f"Only {kind}"), kind_table(value, kind)]
    shown = grid(value, folder)
    blocks += [] if shown is None else [Heading("Images"), shown]
    facts = Table(["", ""], [[name, fact] for name, fact in value["facts"].items()], text_columns=2)
    return [*blocks, Heading("What was run, and on what"), Items([*value["notes"], *_NOTES]), facts]


def sentence(value: Row) -> str:
    """What is best in every block, and by how much it leads the best plain row there."""
    name = first_metric(value)
    if name is None:
        return "No image metric could be measured."
    parts = []
    for block in value["blocks"]:
        rows = [r for r in value["rows"] if r["block"] == block and r["metrics"][name]["value"] is not None]
        if not rows:
            continue
        higher = rows[0]["metrics"][name]["higher_is_better"]
        best = (max if higher else min)(rows, key=lambda r: r["metrics"][name]["value"])
        row = best["metrics"][name]
        text = f"{best['label']} is best by {name}" + (f" ({block})" if block else "")
        text += f", {formatted(name, row, row['value'])} {row['unit']}".rstrip()
        lead = row.get("minus_plain")
        if best["plain"]:
            text += "; nothing beats the plain samplers there"
        elif lead:
            text += f"; against the best plain sampler, {lead['other']}: {verdict(name, row, lead)}"
        parts.append(text)
    return "; ".join(parts)[:1].upper() + "; ".join(parts)[1:] + "."


def first_metric(value: Row) -> str | None:
    """The first metric that has a value in some row."""
    names = list(dict.fromkeys(name for row in value["rows"] for name in row["metrics"]))
    with_value = (n for n in names if any(r["metrics"].get(n, {}).get("value") is not None for r in value["rows"]))
    return next(with_value, None)


def kinds(value: Row) -> list[str]:
    """All images, and the kinds of input that the rows tell apart."""
    found = [kind for row in value["rows"] for metric in row["metrics"].values() for kind in metric.get("by_kind", {})]
    return [ALL, *dict.fromkeys(found)]


def table(value: Row, block: str) -> Table:
    """The rows of one block with all that is known of them."""
    rows = [row for row in value["rows"] if row["block"] == block]
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    described = {name: next(row["metrics"][name] for row in rows if name in row["metrics"]) for name in names}
    header = ["method", *(metric_label(name, described[name]) for name in names)]
    header += ["steps", "MACs", "parameters", "weights (MB)", "time", "search: step-images", "search: seconds"]
    cells: list[list[Cell]] = []
    for row in rows:
        search = row["search"] or {}
        cells.append(
            [
                f"{row['label']}\n{row['how']}",
                *(_quality(name, row["metrics"].get(name)) for name in names),
                str(row["num_inference_steps"]),
                MISSING if row["macs_ratio"] is None else share(row["macs_ratio"]),
                f"{row['params']:,}",
                f"{row['bytes'] / 1e6:.4g}",
                MISSING if row.get("time_ratio") is None else share(row["time_ratio"]),
                f"{search['step_images']:,}" if search else MISSING,
                f"{search['seconds']:,.0f}" if search else MISSING,
            ]
        )
    return Table(header, cells)


def kind_table(value: Row, kind: str) -> Table:
    """Every row's qualities on one kind of input alone."""
    names = list(dict.fromkeys(n for row in value["rows"] for n, m in row["metrics"].items() if kind in m["by_kind"]))
    described = {name: next(r["metrics"][name] for r in value["rows"] if name in r["metrics"]) for name in names}
    rows: list[list[Cell]] = []
    for row in value["rows"]:
        found = [row["metrics"].get(name, {}).get("by_kind", {}).get(kind) for name in names]
        cells = [
            _quality(name, None if of is None else described[name] | of) for name, of in zip(names, found, strict=True)
        ]
        if not any(of is not None and "minus_first" in of for of in found) and row is not value["rows"][0]:
            cells = [cell.partition("\n")[0] for cell in cells]
        rows.append([_full_label(row), *cells])
    return Table(["method", *(metric_label(name, described[name]) for name in names)], rows)


def grid(value: Row, folder: Path) -> Table | None:
    """A few images, what every row of the first block made of them side by side; None where none was kept."""
    rows = [row for row in value["rows"] if row["block"] == value["blocks"][0] and row.get("images")]
    columns = [("input", "image"), ("reference", "reference"), *((row["label"], row["images"]) for row in rows)]
    names = [name for name in value["pictures"] if (folder / "images" / "reference" / f"{name}.png").is_file()]
    if not rows or not names:
        return None
    width = min(128, max(72, 830 // len(columns)))
    lines: list[list[Cell]] = []
    for name in names:
        line: list[Cell] = [f"{value['pictures'][name]}\n{name}"]
        for label, kind in columns:
            path = folder / "images" / kind / f"{name}.png"
            line.append(image_picture(path, f"{name}: {label}", width) if path.is_file() else MISSING)
        lines.append(line)
    return Table(["prompt", *(label for label, _ in columns)], lines)


def charts(value: Row) -> list[Chart]:
    """The first metric over the work and over the bytes of the weights, a line per method through its blocks."""
    name = first_metric(value)
    if name is None:
        return []
    unit = next(row["metrics"][name]["unit"] for row in value["rows"] if name in row["metrics"])
    label = f"{name} ({unit})" if unit else name
    labels = list(dict.fromkeys(row["label"] for row in value["rows"]))

    def lines(x: str, scale: float) -> list[Series]:
        return [
            Series(
                method,
                sorted(
                    (row[x] * scale, row["metrics"][name]["value"])
                    for row in value["rows"]
                    if row["label"] == method and row[x] is not None and row["metrics"][name]["value"] is not None
                ),
            )
            for method in labels
        ]

    return [
        Chart("multiply-accumulates per image, % of the reference's", label, lines("macs_ratio", 100)),
        Chart("bytes of the weights (MB)", label, lines("bytes", 1e-6)),
    ]


def to_csv(value: Row) -> str:
    """A line per row and kind of input; a metric takes five columns."""
    file = io.StringIO()
    lines = []
    for row in value["rows"]:
        search = row["search"] or {}
        for kind in kinds(value):
            line = {"method": row["name"], "block": row["block"], "images": kind}
            line |= {key: row[key] for key in ("num_inference_steps", "macs_ratio", "params", "bytes")}
            line |= {"time_ratio": row.get("time_ratio")}
            line |= {f"search {key}": search.get(key) for key in ("step_images", "network_calls", "seconds")}
            for name, metric in row["metrics"].items():
                of = metric if kind == ALL else metric["by_kind"].get(kind, {})
                minus = of.get("minus_first", {})
                low, high = minus.get("interval", (None, None))
                line |= {name: of.get("value"), f"{name} minus first": minus.get("mean")}
                line |= {f"{name} low": low, f"{name} high": high, f"{name} verdict": minus.get("verdict")}
            lines.append(line)
    writer = csv.DictWriter(file, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def to_text(value: Row) -> str:
    """The table in columns, for the terminal: the first metrics, and the costs."""
    name = first_metric(value)
    rows = [["method", name or "", "against the first", "steps", "MACs", "search"]]
    for row in value["rows"]:
        metric = row["metrics"].get(name or "")
        minus = (metric or {}).get("minus_first")
        rows.append(
            [
                _full_label(row),
                formatted(name or "", metric, metric["value"]) if metric else MISSING,
                verdict(name or "", metric, minus) if metric and minus else MISSING,
                str(row["num_inference_steps"]),
                MISSING if row["macs_ratio"] is None else f"{100 * row['macs_ratio']:.3g} %",
                f"{row['search']['step_images']:,} step-images" if row["search"] else MISSING,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in rows
    )


def _full_label(row: Row) -> str:
    return f"{row['label']}, {row['block']}" if row["block"] else str(row["label"])


def _quality(name: str, metric: Row | None) -> str:
    if metric is None:
        return MISSING
    if metric.get("perfect"):
        return "exact"
    cell = formatted(name, metric, metric["value"])
    minus = metric.get("minus_first")
    return f"{cell}\n{verdict(name, metric, minus)}" if minus else cell
