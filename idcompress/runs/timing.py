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
_PART = "idcompress_part"  # attribute of an error


class Record(dict[str, float]):
    """Seconds by part.

    Attributes:
        image_steps: how often an image went through the denoising networks, guidance branches together: one for an
            image of a batch at a step.
    """

    image_steps: int = 0


_names: list[str] = []  # of the parts that are running, outermost first
_records: list[tuple[int, Record]] = []  # parts that ran already when a record began, and its seconds
_changed = 0.0


@contextmanager
def part(name: str) -> Iterator[None]:
    """A part of the run, also as a decorator; a part inside it pauses it and is called `outer/inner`."""
    _charge()
    _names.append(name)
    try:
        yield
    except Exception as error:
        if not hasattr(error, _PART):
            setattr(error, _PART, name)
        raise
    finally:
        _charge()
        _names.pop()


def part_of(error: BaseException) -> str:
    """The innermost part that an error came from; "" where it came from none."""
    return str(getattr(error, _PART, ""))


@contextmanager
def record() -> Iterator[Record]:
    """Seconds by part of what happens inside, with `OTHER`; complete at the end. Records may hold records."""
    _charge()
    seconds = Record()
    _records.append((len(_names), seconds))
    try:
        yield seconds
    finally:
        _charge()
        _records.pop()


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


def count(images: int) -> None:
    """Say that so many images went through the denoising networks."""
    for _, seconds in _records:
        seconds.image_steps += images


def summary(seconds: dict[str, float]) -> dict[str, object]:
    """A record as it is kept: the wall time, its parts, which sum to it, and `image_steps` if anything was sampled."""
    sampled = seconds.image_steps if isinstance(seconds, Record) else 0
    wall, parts = math.fsum(seconds.values()), dict(sorted(seconds.items()))
    return {"wall_seconds": wall, "seconds": parts, **({"image_steps": sampled} if sampled else {})}


def save(seconds: dict[str, float], folder: Path) -> None:
    """Write timing.json."""
    files.write_json(folder / "timing.json", {"version": 1, **summary(seconds)})
