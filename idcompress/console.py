"""What a run says: lines on the terminal and in log.txt, and progress bars with the time left."""

from __future__ import annotations

import codecs
import io
import logging
import os
import sys
import threading
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypeVar

T = TypeVar("T")
log = logging.getLogger("idcompress")
_SILENCE_S = 60.0  # after which a run that draws no bar says where it is
_last_line = 0.0
_kept: list[str] | None = None  # warnings of a process that is silent
_counted: list[tuple[str, int, int | None]] = []  # work in progress, outermost first: what, units done, units

# What stands for the signs that this program itself writes, on a terminal that does not know them.
_STAND_INS: dict[int, int | str] = {
    **str.maketrans("–—−×‘’“”·•µ↑↓≈", "---x''\"\".*u^v~"),  # noqa: RUF001
    **{ord(sign): plain for sign, plain in zip("→←…±≥≤√", ("->", "<-", "...", "+-", ">=", "<=", "sqrt"), strict=True)},
}


def suit_terminal() -> None:
    """Let no letter fail on a terminal whose encoding lacks it: an ASCII stand-in or its code is shown.

    A locale of C or POSIX, which Python takes for UTF-8, is one that knows ASCII only.
    """
    codecs.register_error("idcompress", _stand_in)
    told = os.environ.get("PYTHONIOENCODING") or os.environ.get("PYTHONUTF8") or "utf8" in sys._xoptions
    # Where LANG alone says C, Python has set LC_CTYPE itself at its start, and its UTF-8 mode tells so (PEP 538, 540).
    set_by_user = ("LC_ALL", "LANG") if sys.flags.utf8_mode and not told else ("LC_ALL", "LC_CTYPE", "LANG")
    locale = next((os.environ[name] for name in set_by_user if os.environ.get(name)), "")
    for stream, own in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__)):
        if isinstance(stream, io.TextIOWrapper):
            ascii_only = locale in ("C", "POSIX") and not told and stream is own
            stream.reconfigure(encoding="ascii" if ascii_only else None, errors="idcompress")


def knows_every_letter(stream: TextIO) -> bool:
    return (stream.encoding or "utf-8").lower().startswith("utf")


def _stand_in(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler of Python's codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    shown = ""
    for letter in error.object[error.start : error.end]:
        if "\u2500" <= letter <= "\u257f":  # the lines of a table
            plain = "|" if "VERTICAL" in (name := unicodedata.name(letter)) else "-"
            plain = "+" if " AND " in name else plain
        else:
            plain = letter.translate(_STAND_INS)
        shown += plain if plain.isascii() else plain.encode("ascii", "backslashreplace").decode("ascii")
    return shown, error.end


def start_logging(path: Path | None, *, quiet: bool = False) -> None:
    """Send our lines to stdout, and with everything else that is logged to a file; quiet: warnings only."""
    global _kept
    _kept = None
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    suit_terminal()
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(terminal)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.propagate = False
    if path is not None:
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(file)
    # Libraries that announce their own deprecations are no news to a user of this program.
    warnings.filterwarnings("ignore", category=FutureWarning)


def silence() -> None:
    """Let another process speak for this one: nothing but errors from now on, and warnings are kept for it."""
    global _kept
    _kept = []
    log.setLevel(logging.ERROR)


def kept_warnings() -> list[str]:
    """What a silent process would have warned of since the last call."""
    found = list(_kept or ())
    if _kept is not None:
        _kept.clear()
    return found


def say(message: str) -> None:
    global _last_line
    _last_line = time.monotonic()
    log.info(message)


def warn(message: str) -> None:
    global _last_line
    _last_line = time.monotonic()
    if _kept is not None:
        _kept.append(message)
    log.warning("warning: %s", message)


@contextmanager
def heartbeat(part: Callable[[], str]) -> Iterator[None]:
    """Where stderr is no terminal, so that no bar is drawn, say where a run is after every minute without a line.

    Args:
        part: names what runs where no progress is counted.
    """
    if sys.stderr.isatty():
        yield
        return
    began, stop = time.monotonic(), threading.Event()
    _counted.clear()  # of a run in this process that was broken off

    def beat() -> None:
        while not stop.wait(_SILENCE_S / 20):
            now = time.monotonic()
            if now - max(_last_line, began) >= _SILENCE_S:
                say(f"  {_whereabouts() or part()}, after {(now - began) / 60:.0f} min")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _whereabouts() -> str:
    """The innermost work that is counted."""
    if not _counted:
        return ""
    description, done, total = _counted[-1]
    return f"{description}: {done} of {total}" if total is not None else f"{description}: {done}"


@contextmanager
def progress_bar(description: str, total: int | None, completed: int = 0) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, drawn where stderr is a terminal; the context's value advances it by one.

    Elsewhere `heartbeat` says how far it is.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    hidden = not console.is_terminal or not log.isEnabledFor(logging.WARNING)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task, place = bar.add_task(description, total=total, completed=completed), len(_counted)
        _counted.append((description, completed, total))

        def advance() -> None:
            bar.advance(task)
            _counted[place] = (description, _counted[place][1] + 1, total)

        try:
            yield advance
        finally:
            del _counted[place:]


def progress(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Iterate under a progress bar."""
    with progress_bar(description, total) as advance:
        for item in items:
            yield item
            advance()
