"""Traces: one JSON line per evaluated candidate, appended when it is done and never touched again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import IdcError
from .files import finite


class Trace:
    """The rows of a trace.jsonl; a line cut short by an interrupted write is dropped on opening.

    Fields that hold wall-clock time end in `_seconds`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                row = json.loads(line.decode("utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError):
                row = None
            if not isinstance(row, dict):
                raise IdcError(f"{path}, line {number}, is damaged; remove the run folder to start again")
            self.rows.append(row)

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The first row whose fields hold these values."""
        return next((row for row in self.rows if all(row.get(k) == v for k, v in key.items())), None)

    def last(self, **key: Any) -> dict[str, Any] | None:
        """The last row whose fields hold these values."""
        return next((row for row in reversed(self.rows) if all(row.get(k) == v for k, v in key.items())), None)

    def append(self, row: dict[str, Any]) -> dict[str, Any]:
        """Add one row and wait until it is on disk."""
        line = json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(line.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(json.loads(line))
        return self.rows[-1]
