"""The page, the table and the CSV file of one study."""

from __future__ import annotations

import csv
import io
from typing import Any

from ..types import Study
from .figures import Picture
from .page import TITLE, Block, Heading, Items, Text
from .tables.table import MISSING, Table


def compose(title: str, study: Study, picture: Picture, facts: dict[str, str]) -> list[Block]:
    """The page's blocks: the answer, the figure, the table, and what all of it is from."""
    return [
        Heading(title, TITLE),
        Text(study.outcome, lead=True),
        Heading("Figure"),
        picture,
        Heading("Table"),
        table(study),
        Heading("What was run, and on what"),
        Items(study.notes),
        Table(["", ""], [[name, value] for name, value in facts.items()], text_columns=2),
    ]


def table(study: Study) -> Table:
    return Table(list(study.rows[0]), [[_cell(value) for value in row.values()] for row in study.rows])


def to_text(study: Study) -> str:
    """The table in columns, for the terminal."""
    lines = [list(study.rows[0]), *([_cell(value).replace("\n", " ") for value in row.values()] for row in study.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)


def to_csv(study: Study) -> str:
    """The table as CSV; a paired difference takes four columns."""
    file = io.StringIO()
    rows = [dict(cell for column, value in row.items() for cell in _flat(column, value)) for row in study.rows]
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _flat(column: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(column, value)]
    low, high = value.get("interval", (0.0, 0.0))
    cells = {"": value.get("mean", 0.0), " low": low, " high": high, " verdict": value.get("verdict", "no gain")}
    return [(f"{column}{ending}", cell) for ending, cell in cells.items()]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        if not value:
            return "no difference"
        low, high = value["interval"]
        return f"{value['mean']:+.3g} [{low:.3g}, {high:.3g}]\n{value['verdict']}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return MISSING if value is None else str(value)
