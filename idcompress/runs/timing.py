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
NETWORKS = ("encode", "denoise", "decode", "train")  # parts in which the model's networks run
_PART = "idcompress_part"  # attribute of an error


class Record(dict[str, float]):
    """Seconds by part.

    Attributes:
        image_steps: how often an image went through the denoising networks, guidance branches together: one for an
            image of a batch at a step.
        devices: that worked on it.
    """

    image_steps: int = 0
    devices: int = 1


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


def count(images: int) -> None:
    """Say that so many images went through the denoising networks."""
    for _, seconds in _records:
        seconds.image_steps += images


def spread(devices: int) -> None:
    """Say that so many devices work on what is recorded."""
    for _, seconds in _records:
        seconds.devices = devices


def summary(seconds: dict[str, float]) -> dict[str, object]:
    """A record as it is kept: the wall time, its parts, which sum to it, the share of it outside the networks, and
    `image_steps` if anything was sampled.
    """
    parts: dict[str, object] = dict(sorted(seconds.items()))
    made: dict[str, object] = {"wall_seconds": math.fsum(seconds.values()), "seconds": parts}
    if isinstance(seconds, Record) and seconds.devices > 1:
        made["devices"] = seconds.devices
    if isinstance(seconds, Record) and seconds.image_steps:
        made |= {"image_steps": seconds.image_steps, "share_outside_networks": outside_networks(seconds)}
    return made


def outside_networks(seconds: dict[str, float]) -> float:
    """The share of the wall time, 0 to 1, in which no network ran: neither a denoising one nor one around it."""
    inside = math.fsum(took for name, took in seconds.items() if name.rpartition("/")[2] in NETWORKS)
    wall = math.fsum(seconds.values())
    return 1 - inside / wall if wall else 0.0


def save(seconds: dict[str, float], folder: Path) -> None:
    """Write timing.json."""
    files.write_json(folder / "timing.json", {"version": 1, **summary(seconds)})
