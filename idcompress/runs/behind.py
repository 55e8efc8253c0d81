"""Files that are written behind a GPU's back: the next pictures are sampled meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

MOST_WAITING = 4  # Calls with their pictures in memory; a fifth waits for the first.


@contextmanager
def behind(beside: bool) -> Iterator[Callable[..., None]]:
    """A function that runs others later, one after the other and in order; at the end all have run.

    Args:
        beside: in a thread of its own. False runs each at once: where networks and files share the CPU nothing is won.

    Raises:
        Exception: what a call raised, at a later call or at the end.
    """
    if not beside:
        yield lambda function, *arguments: function(*arguments)
        return
    waiting: list[Future[Any]] = []
    with ThreadPoolExecutor(1, "files") as executor:

        def later(function: Callable[..., Any], *arguments: Any) -> None:
            while waiting and (waiting[0].done() or len(waiting) >= MOST_WAITING):
                waiting.pop(0).result()
            waiting.append(executor.submit(function, *arguments))

        yield later
        for future in waiting:
            future.result()
