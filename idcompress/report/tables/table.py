"""What a table is, for everything that puts one on a page."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..figures import Picture

Cell = str | Picture
MISSING = "-"


@dataclass(frozen=True)
class Table:
    """A table of text and pictures.

    Attributes:
        header: one cell per column; in any cell, what follows a line break is secondary and shown smaller.
        rows: a row of a single cell is a heading inside the table.
        text_columns: the first columns, whose text is left-aligned; the others hold numbers or pictures.
        notes: lines below the table.
    """

    header: list[str]
    rows: list[list[Cell]]
    text_columns: int = 1
    notes: list[str] = field(default_factory=list)
