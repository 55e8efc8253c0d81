"""The processes of one run. All take the same decisions from the same values; the first one alone writes and speaks.

What has to be one value for all is `agreed`, made by the first process, and work that falls into parts is `shared`,
each part done by one process and told to all. A mistake in either is raised in every process, as it would have been in
one. In a run of one process, which most are, these functions do nothing but call what they are given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

from .. import console
from ..errors import LostProcessError
from . import timing

T = TypeVar("T")
Item = TypeVar("Item", bound=Hashable)

_TOLD = "idcompress_told"  # attribute of an error that all processes raise


class Group(Protocol):
    """How processes talk. All of them call the same methods in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gathered(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        ...

    def told(self, value: Any) -> Any:
        """The first process's value."""
        ...

    def check(self) -> None:
        """Raise LostProcessError where one of the others is seen to be gone."""
        ...


_group: Group | None = None


@contextmanager
def joined(group: Group | None) -> Iterator[None]:
    """Let `agreed` and `shared` be of these processes; None: of this one alone."""
    global _group
    before, _group = _group, group
    try:
        yield
    finally:
        _group = before


def agreed(make: Callable[[], T], what: str) -> T:
    """What the first process makes; the others wait for it. While it makes it, it is alone.

    Args:
        what: is made, which must be the same in all processes.
    """
    group = _group
    if group is None:
        return make()
    _meet(group, what)
    with joined(None):
        own = _attempt(make) if group.rank == 0 else None
    value, error = group.told(own and (own[0], _portable(own[1])))
    if error is not None:
        raise _told(own[1] if own and own[1] else error, own=own is not None)
    made: T = value
    return made


def shared(
    work: Callable[[Item], T],
    items: Sequence[Item],
    what: str,
    owners: dict[Item, int],
    through: Callable[[Sequence[Item]], Iterable[Item]] = iter,
) -> Iterator[T]:
    """`work` of every item, in order. Of several processes each does its own items, and all get all results.

    Args:
        work: of an item; its results go to other processes, so tensors lie on the CPU.
        owners: who has had which item; goes on from there, and notes who has it now.
        through: goes over the items that this process does, with a progress bar for example.
    """
    group = _group
    if group is None:
        yield from map(work, through(items))
        return
    _meet(group, what)
    ranks = _by_rank(items, owners, group.size)
    own: dict[int, tuple[Any, Exception | None]] = {}
    mine = [place for place, rank in enumerate(ranks) if rank == group.rank]
    console.kept_warnings()  # of what the first process has done, too
    with timing.record() as spent:
        for place, item in zip(mine, through([items[place] for place in mine]), strict=True):
            group.check()
            own[place] = _attempt(lambda item=item: work(item))  # type: ignore[misc]
            if own[place][1] is not None:
                break
    parts = {place: (value, _portable(error)) for place, (value, error) in own.items()}
    with timing.part("wait"):
        told = group.gathered((parts, spent.image_steps, console.kept_warnings()))
    timing.count(sum(steps for _, steps, _ in told) - spent.image_steps)
    for warning in [warning for _, _, warnings in told for warning in warnings] if group.rank == 0 else []:
        console.warn(warning)
    made = {place: outcome for parts, _, _ in told for place, outcome in parts.items()}
    for place in sorted(made):
        error = own[place][1] if place in own else made[place][1]
        if error is not None:
            raise _told(error, own=place in own)
    for place in range(len(items)):
        yield made[place][0]


def end(error: BaseException | None) -> None:
    """A process has come to its end, after which the others need not wait for it.

    Args:
        error: that it ends by; what the others do not know of they are told at their next meeting.
    """
    if _group is None:
        return
    if error is None:
        _meet(_group, "the end")
    elif _group.rank != 0 and isinstance(error, Exception) and not hasattr(error, _TOLD):
        with suppress(LostProcessError):
            _group.gathered(("", _portable(error)))


def is_of_another(error: BaseException) -> bool:
    """Whether an error is raised here because another process raised it."""
    return getattr(error, _TOLD, None) == "another's"


def _by_rank(items: Sequence[Item], owners: dict[Item, int], size: int) -> list[int]:
    """Who does which item: whoever has had it before, unless that is more than a fair share."""
    most, loads = -(-len(items) // size), [0] * size
    found = dict[int, int]()
    for place, item in enumerate(items):
        if item in owners and loads[owners[item]] < most:
            found[place] = owners[item]
            loads[owners[item]] += 1
    for place, item in enumerate(items):
        if place not in found:
            found[place] = loads.index(min(loads))
            loads[found[place]] += 1
        owners[item] = found[place]
    return [found[place] for place in range(len(items))]


def _meet(group: Group, what: str) -> None:
    """Wait until all processes have come to the same place.

    Raises:
        Exception: that a process has ended by.
        RuntimeError: one of them has come to another place.
    """
    with timing.part("wait"):
        heads = group.gathered((what, None))
    for _, error in heads:
        if error is not None:
            raise _told(error, own=False)
    places = list(dict.fromkeys(place for place, _ in heads))
    if len(places) > 1:
        error = RuntimeError(f"the processes of this run disagree about what comes next: {'; '.join(places)}")
        raise _told(error, own=group.rank == 0)


def _attempt(make: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return make(), None
    except Exception as error:
        return None, error


def _portable(error: Exception | None) -> Exception | None:
    """An error as it can be told to another process."""
    try:
        copy.deepcopy(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _told(error: Exception, *, own: bool) -> Exception:
    """An error that all processes raise."""
    setattr(error, _TOLD, "own" if own else "another's")
    return error
