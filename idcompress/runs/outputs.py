"""Results in a folder that holds other people's files as well: each gets a free name, and nothing is written over.

A run knows its own files by `written.jsonl` in its run folder, a line with place and SHA-256 for each, written before
the file itself. A file is replaced if this run, or a finished one of the same command, noted it and it still has that
digest. Everything else belongs to somebody else, an earlier result that was edited since included.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..console import warn
from ..errors import IdcError
from . import files
from .run_dir import OUTPUTS, RunDir, read_info
from .trace import Trace

RECORD = "written.jsonl"
_LONGEST_NAME = 255  # bytes, on all usual file systems


class OutputFolder:
    """Where a run writes results, as names and bytes.

    Args:
        path: the folder, made when the first result is written.
        run_dir: of the run, which notes what it writes.
        overwrite: replace what is there, whoever made it (output.overwrite).
        keep: files that are never replaced, for example the inputs.

    Raises:
        IdcError: there is a file of the folder's name.
    """

    def __init__(self, path: Path, run_dir: RunDir, *, overwrite: bool = False, keep: Iterable[Path] = ()) -> None:
        if path.exists() and not path.is_dir():
            raise IdcError(f"output.path={path} is a file; want a folder, which need not be there yet")
        self.path, self.overwrite = path, overwrite
        self._keep = {kept.resolve() for kept in keep}
        self._record = run_dir.trace(RECORD)
        self._claimed: set[str] = set()
        self._ours: dict[str, set[str]] = {}
        for row in (*_rows_of_the_same_command(run_dir), *self._record.rows):
            self._ours.setdefault(str(row["file"]), set()).add(str(row["sha256"]))

    def choose(self, stems: Sequence[str], endings: Sequence[str]) -> list[str]:
        """Stems whose files may be written: the given ones, with a number behind those that are not free.

        Args:
            stems: distinct ones, one for each result.
            endings: what follows a stem in the names of a result's files, like ".png".

        Raises:
            IdcError: output.overwrite is set, and a name is that of a folder or of an input.
        """
        chosen: list[str | None] = [None] * len(stems)
        for position, stem in enumerate(stems):  # first all that can have their own name
            if self._is_free(stem, endings):
                chosen[position] = self._claim(stem, endings)
        return [found or self._next(stem, endings) for stem, found in zip(stems, chosen, strict=True)]

    def write(self, stem: str, ending: str, data: bytes) -> Path:
        """Write a file of a chosen stem; under the next free name if somebody has taken this one in the meantime.

        Raises:
            IdcError: the folder cannot be written to.
        """
        while True:
            path = self.path / f"{stem}{ending}"
            digest = hashlib.sha256(data).hexdigest()
            try:
                replace = self.overwrite or self._is_own(path)
                self._record.append({"file": _place(path), "sha256": digest})
                if replace:
                    return files.write_bytes(path, data)
                return files.write_new(path, data)
            except FileExistsError:
                stem = self._next(stem, [ending])
            except OSError as error:
                raise IdcError(f"cannot write {path} ({error.strerror}); choose another output.path") from None

    def _is_free(self, stem: str, endings: Sequence[str]) -> bool:
        names = [f"{stem}{ending}" for ending in endings]
        if any(folded(name) in self._claimed or len(os.fsencode(name)) > _LONGEST_NAME for name in names):
            return False
        paths = [self.path / name for name in names]
        if not self.overwrite:
            return all(not os.path.lexists(path) or self._is_own(path) for path in paths)
        for path in paths:
            if path.resolve() in self._keep:
                raise IdcError(f"{path} would overwrite its input; choose another output.path")
            if path.is_dir():
                raise IdcError(f"{path} is a folder, and a result would have its name; choose another output.path")
        return True

    def _next(self, stem: str, endings: Sequence[str]) -> str:
        for number in itertools.count(2):
            candidate = numbered(stem, number, endings)
            if self._is_free(candidate, endings):
                warn(f"{self.path / stem}{endings[0]} is not of this run: the result is {candidate}{endings[0]}")
                return self._claim(candidate, endings)
        raise AssertionError("numbers do not end")

    def _claim(self, stem: str, endings: Sequence[str]) -> str:
        self._claimed |= {folded(f"{stem}{ending}") for ending in endings}
        return stem

    def _is_own(self, path: Path) -> bool:
        """Whether this command made a file, and nobody has changed it since."""
        digests = self._ours.get(_place(path))
        if digests is None or path.is_symlink() or not path.is_file() or path.resolve() in self._keep:
            return False
        return files.file_digest(path) in digests


def folded(name: str) -> str:
    """A file name as disks compare it that know no case and one form of an accented letter."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def numbered(stem: str, number: int | str, endings: Iterable[str]) -> str:
    """A stem with a number behind it, shortened where a name would become too long for the disk."""
    tail = f"_{number}"
    room = _LONGEST_NAME - max(len(os.fsencode(ending)) for ending in endings) - len(tail)
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return f"{stem}{tail}"


@contextmanager
def whole_folder(folder: Path, key: str) -> Iterator[Path]:
    """A new folder to fill, which gets its name only when it is complete; what fails is removed.

    Args:
        folder: not there yet, or empty.
        key: of the configuration that names it, for errors.

    Raises:
        IdcError: somebody has filled the folder in the meantime.
    """
    partial, mark = _new_folder_beside(folder)
    try:
        with mark, files.naming(partial):
            yield partial
            (partial / _MARK).unlink()
        try:
            if folder.exists():
                folder.rmdir()
            partial.replace(folder)
        except OSError:
            raise IdcError(f"{key}={folder} was filled by somebody else in the meantime; choose another") from None
    except BaseException:
        files.remove_folder(partial)
        raise


# A file in an unfinished folder, locked while a process fills it: without the lock it is what a killed one left.
_MARK = ".idc-unfinished"


def _new_folder_beside(folder: Path) -> tuple[Path, IO[bytes]]:
    """A new folder of a similar name, and its open mark. What a killed run left there goes, and nothing else."""
    for number in itertools.count(1):
        partial = folder.with_name(f"{folder.name}.partial" + (f"_{number}" if number > 1 else ""))
        if _is_abandoned(partial):
            files.remove_folder(partial)
        try:
            partial.mkdir(parents=True)
        except FileExistsError:
            warn(f"{partial} is left alone: no killed run has left it")
            continue
        mark = (partial / _MARK).open("wb")
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return partial, mark
    raise AssertionError("numbers do not end")


def _is_abandoned(partial: Path) -> bool:
    """Whether a folder has the mark of a process that is no more."""
    mark = partial / _MARK
    if partial.is_symlink() or mark.is_symlink() or not mark.is_file():
        return False
    with mark.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _rows_of_the_same_command(run_dir: RunDir) -> Iterator[dict[str, object]]:
    """What finished runs of the same command have written, wherever their run folders are."""
    info, path = run_dir.info, run_dir.path
    ours = OUTPUTS / str(info["task"]) / str(info["model"])
    set_aside = path.parent.glob(f"{_literal(path.name)}.*/{RECORD}")  # an explicit folder of the run before
    for record in itertools.chain(ours.glob(f"*/*/{RECORD}"), ours.glob(f"*/*/*/{RECORD}"), set_aside):
        found = read_info(record.parent)
        same = found is not None and all(found.get(name) == info[name] for name in ("stage", "digest"))
        if found is not None and same and found["finished"]:
            yield from Trace(record).rows


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _place(path: Path) -> str:
    """A file's absolute place as text, whatever bytes its name is made of."""
    return (path.parent.resolve() / path.name).as_uri()
