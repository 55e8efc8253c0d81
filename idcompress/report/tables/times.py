"""Where the wall time of every run went."""

from __future__ import annotations

from ..collect import Compression
from .table import Cell, Table

_PARTS = ("load", "encode", "denoise", "decode", "measure", "train")  # columns, before the rest


def table(compression: Compression) -> Table | None:
    """A row per part of a run, its seconds by kind of work; None where none is on record."""
    runs = [(f"idc {stage.name.replace('_', '-')}", stage.seconds) for stage in compression.stages]
    rows: list[list[Cell]] = []
    for command, seconds in [*runs, ("idc evaluate", compression.seconds)]:
        parts: dict[str, dict[str, float]] = {}
        for path, value in seconds.items():
            outer, _, last = path.rpartition("/")
            row, column = (outer, last) if last in _PARTS else ("" if path == "other" else path, "rest")
            parts.setdefault(row, {})[column] = parts.get(row, {}).get(column, 0.0) + value
        for row, found in sorted(parts.items()):
            cells = [f"{found[column]:.1f}" if column in found else "" for column in (*_PARTS, "rest")]
            rows.append([f"{command}: {row}" if row else command, *cells, f"{sum(found.values()):.1f}"])
        if len(parts) > 1:
            rows.append([f"{command}, all of it", *[""] * (len(_PARTS) + 1), f"{sum(seconds.values()):.1f}"])
    notes = ["Seconds of these runs on their machine; no latency, since what is cached is read and not computed."]
    return Table(["", *_PARTS, "rest", "sum"], rows, notes=notes) if rows else None
