"""Where a run's time goes: at every moment exactly one named part of it runs, so the parts sum to the wall time."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter as clock

from . import files

OTHER = "other"  # time outside of every part
_names: list[str] = []  # of the parts that are running, outermost first
_records: list[tuple[int, dict[str, float]]] = []  # parts that ran already when a record began, and its seconds
_changed = 0.0


@contextmanager
def part(name: str) -> Iterator[None]:
    """A part of the run, also as a decorator; a part inside it pauses it and is called `outer/inner`."""
    _charge()
    _names.append(name)
    try:
        yield
    finally:
        _charge()
        _names.pop()


@contextmanager
def record() -> Iterator[dict[str, float]]:
    """Seconds by part of what happens inside, with `OTHER`; complete at the end. Records may hold records."""
    _charge()
    seconds: dict[str, float] = {}
    _records.append((len(_names), seconds))
    try:
        yield seconds
    finally:
        _charge()
        _records.pop()


def running() -> str:
    """The parts that are running, outermost first."""
    return "/".join(_names) or OTHER


def _charge() -> None:
    """Give the time since the last change to the innermost part, work that it queued on a GPU included."""
    global _changed
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    now = clock()
    for outer, seconds in _records:
        name = "/".join(_names[outer:]) or OTHER
        seconds[name] = seconds.get(name, 0.0) + now - _changed
    _changed = now


def summary(seconds: dict[str, float]) -> dict[str, object]:
    """A record as it is kept: the wall time, and its parts, which sum to it."""
    return {"wall_seconds": math.fsum(seconds.values()), "seconds": dict(sorted(seconds.items()))}


def save(seconds: dict[str, float], folder: Path) -> None:
    """Write timing.json."""
    files.write_json(folder / "timing.json", {"version": 1, **summary(seconds)})
