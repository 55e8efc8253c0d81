"""Errors that the user can mend: one line, exit code 2."""

import difflib
import errno
import os
from collections.abc import Iterable


class IdcError(Exception):
    """A mistake in the input, configuration or surroundings; its text is one line: got, wanted, key to change.

    Attributes:
        code: that a command ends with.
    """

    code = 2


class LostProcessError(IdcError):
    """Another process of this run died, and not by a mistake of the user."""

    code = 1


class NotFiniteError(IdcError):
    """A network gave NaN or infinity where numbers are wanted."""


def shown(value: object) -> str:
    """A value as an error shows what it got: as Python writes it, without the middle of a long one."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:120]}... ({len(text):,} characters) ...{text[-40:]}"


def nearest(name: object, known: Iterable[str]) -> str:
    """The nearest valid name as the tail of an error that has listed all of them; "" where none is near."""
    if not isinstance(name, str) or len(name) > 200:
        return ""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest valid one, else all of them."""
    known = list(known)
    return nearest(name, known) or (f"; there are: {', '.join(known)}" if known else "; there are none")


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def of_the_system(error: OSError) -> str:
    """What the system refused, with advice that fits the reason."""
    what = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        what = f"{os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename}: {what}"
    if error.errno in _NO_ROOM:
        return f"{what}; make room there, or choose another hydra.run.dir or output.path; the same command continues"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{what}; change its permissions, or choose another place"
    return f"{what}; if it went away, bring it back; the same command continues what it had begun"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory, or the machine's, is full; torch has no one class for it."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )
