"""Traces: one JSON line per evaluated candidate, appended when it is done and never touched again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import IdcError
from .files import finite, parse_json, read_file
from .ranks import agreed


class Trace:
    """The rows of a trace.jsonl. Opening changes nothing: a line that an interrupted write cut short is no row, and the
    next row takes its place.

    Fields that hold wall-clock time end in `_seconds`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole_bytes: int | None = None  # where the next row begins, if a part of another stands there
        self.rows: list[dict[str, Any]] = agreed(self._read, f"trace {path.name}")

    def _read(self) -> list[dict[str, Any]]:
        """The rows that are there."""
        rows: list[dict[str, Any]] = []
        if not self.path.exists():
            return rows
        data = read_file(self.path, "trace")
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self._whole_bytes = len(whole)
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                row = parse_json(line.decode("utf-8"))
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise IdcError(f"{self.path}, line {number}, is damaged; remove the run folder to start again")
            rows.append(row)
        return rows

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The first row whose fields hold these values."""
        return next((row for row in self.rows if all(row.get(k) == v for k, v in key.items())), None)

    def last(self, **key: Any) -> dict[str, Any] | None:
        """The last row whose fields hold these values."""
        return next((row for row in reversed(self.rows) if all(row.get(k) == v for k, v in key.items())), None)

    def append(self, row: dict[str, Any]) -> dict[str, Any]:
        """Add one row and wait until it is on disk. Of several processes the first one's row is that of all."""
        self.rows.append(agreed(lambda: self._written(row), f"row {len(self.rows) + 1} of {self.path.name}"))
        return self.rows[-1]

    def _written(self, row: dict[str, Any]) -> Any:
        line = json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._whole_bytes is not None:
            os.truncate(self.path, self._whole_bytes)
            self._whole_bytes = None
        with self.path.open("ab") as file:
            file.write(line.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        return json.loads(line)
