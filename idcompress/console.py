"""What a run says: lines on the terminal and in log.txt, and progress bars with the time left."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger("idcompress")


def start_logging(path: Path | None, *, quiet: bool = False) -> None:
    """Send our lines to stdout, and with everything else that is logged to a file; quiet: warnings only."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(terminal)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.propagate = False
    if path is not None:
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(file)
    # Libraries that announce their own deprecations are no news to a user of this program.
    warnings.filterwarnings("ignore", category=FutureWarning)


def say(message: str) -> None:
    log.info(message)


def warn(message: str) -> None:
    log.warning("warning: %s", message)


@contextmanager
def progress_bar(description: str, total: int | None, completed: int = 0) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, drawn where stderr is a terminal; the context's value advances it by one."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total, completed=completed)
        yield lambda: bar.advance(task)


def progress(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Iterate under a progress bar."""
    with progress_bar(description, total) as advance:
        for item in items:
            yield item
            advance()
