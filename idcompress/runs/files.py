"""Files that appear whole or not at all, and their digests."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import IdcError
from .places import is_main_process

_REMEMBERED_BYTES = 2**24  # files of this size or more are read once
_SETTLED_NS = 2 * 10**9
_JSON_BYTES = 2**26  # of a file that describes something; tables of data are read by those who know them
NAME_BYTES = 255  # of a file's or a folder's name, at most, on all usual file systems


def fitted(path: Path) -> Path:
    """The same path with names that a file system takes: longer ones are cut and end in a digest of the whole name."""
    return Path(*map(_fitted_name, path.parts))


def _fitted_name(name: str) -> str:
    whole = os.fsencode(name)
    if len(whole) <= NAME_BYTES or Path(name).anchor == name:
        return name
    tail = f"-{hashlib.sha256(whole).hexdigest()[:12]}{Path(name).suffix if len(Path(name).suffix) <= 8 else ''}"
    return _first_bytes(name, NAME_BYTES - len(os.fsencode(tail))) + tail


def _first_bytes(name: str, number: int) -> str:
    """The longest beginning of a name of so many bytes that ends between two letters."""
    while len(os.fsencode(name)) > number:
        name = name[:-1]
    return name


def _make_temporary(path: Path) -> tuple[int, str]:
    """A new hidden file beside a path, whose name begins as its own does and fits where its own fits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.mkstemp(dir=path.parent, prefix=f".{_first_bytes(path.name, 200)}.")


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> Path:
    """Write by renaming a finished temporary file, so that an interrupted write leaves nothing behind.

    Args:
        durable: wait until the bytes are on the disk, where a loss of power must not leave an empty file either.

    The further processes of a distributed run write nothing.
    """
    if not is_main_process():
        return path
    with whole(path, durable=durable) as temporary:
        temporary.write_bytes(data)
    return path


@contextmanager
def whole(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A hidden file beside a path to write into, at whatever length; renamed at the end, removed after an error."""
    handle, name = _make_temporary(path)
    os.close(handle)
    temporary = Path(name)
    try:
        with naming(path):
            yield temporary
            if durable:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the system refuses while a path is written is an OSError that names it, whichever library wrote.

    safetensors and torch have errors of their own for a full disk, and Python's may lack the file's name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        found = re.search(r"os error (\d+)|code: (\d+), kind", str(error))
        number = int(found[1] or found[2]) if found else 0
        if not number:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # as `_make_temporary` and `write_new` name them


def remove_temporaries(folder: Path, older_than_s: float = 0.0) -> None:
    """Remove what processes that were killed left in a folder and those below it; only where no other one writes now.

    Args:
        older_than_s: leave those that were written a moment ago, where others may write.
    """
    for path in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime >= older_than_s:
                    path.unlink()


def remove_unfinished(path: Path) -> None:
    """Remove what a process that was killed left of a path's next version; only where no other process writes it."""
    for temporary in path.parent.glob(f".{glob.escape(_first_bytes(path.name, 200))}.*"):
        temporary.unlink(missing_ok=True)


def write_new(path: Path, data: bytes) -> Path:
    """As `write_bytes`, where no file has the name yet.

    Raises:
        FileExistsError: one has it, even if it appeared a moment ago; it stays as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".idc.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a disk without links
            with path.open("xb") as file:
                file.write(data)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def link(source: Path, path: Path) -> Path:
    """The same file under another name, without its bytes a second time where the disk allows; never written again."""
    handle, temporary = _make_temporary(path)
    os.close(handle)
    Path(temporary).unlink()
    try:
        os.link(source, temporary)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, temporary)
    Path(temporary).replace(path)
    return path


def remove_folder(path: Path) -> None:
    """Remove a folder that this program has made, with all that is in it."""
    shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8; what a file name has that is not UTF-8 becomes \\udcff, which JSON reads back as it was."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> Path:
    return write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """A value as the JSON that this program's files hold."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # names of files need not be UTF-8


def read_json(path: Path, what: str, *, infinite: bool = False) -> dict[str, Any]:
    """Read a JSON object; a missing or damaged file is one clear line, and so is one that is no file on a disk.

    Args:
        infinite: infinity may stand in it, as in the configurations of diffusers' schedulers.
    """
    try:
        value = parse_json(read_file(path, what, _JSON_BYTES).decode("utf-8"), infinite=infinite)
    except FileNotFoundError:
        raise IdcError(f"{what}: there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise IdcError(f"{what}: {path} is not readable JSON ({error})") from None
    if not isinstance(value, dict):
        raise IdcError(f"{what}: {path} must hold a JSON object, got {type(value).__name__}")
    return value


def parse_json(text: str, *, infinite: bool = False) -> Any:
    """The value of a JSON text that a stranger may have written.

    Args:
        infinite: allow infinity, which JSON does not know and Python writes.

    Raises:
        ValueError: it is no JSON, is nested too deep, or holds NaN, infinity or an integer of more than 64 bits.
    """

    def constant(name: str) -> float:
        if not infinite or name == "NaN":
            raise ValueError(f"{name} is no number of JSON")
        return float(name)

    try:
        return json.loads(text, parse_constant=constant, parse_int=_integer, parse_float=_fraction)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _fraction(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is larger than any number")
    return value


def read_file(path: Path, what: str, most_bytes: int = 2**30) -> bytes:
    """A file's bytes, where it is one on a disk: devices and pipes may never end, or wait for ever.

    Raises:
        IdcError: it is something else, or larger than it may be.
        OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise IdcError(f"{what}: {path} is a {'folder' if path.is_dir() else 'device or pipe'}; want a file")
    if status.st_size > most_bytes:
        raise IdcError(f"{what}: {path} has {status.st_size:,} bytes, more than any such file ({most_bytes:,})")
    return path.read_bytes()


def finite(value: Any) -> Any:
    """The same value with NaN and infinities, which JSON does not know, as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    text = json.dumps(finite(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's contents.

    That of a large file is kept in the user's cache, with the file's size and times, so that gigabytes of weights are
    not read by every command.
    """
    status = path.stat()
    if status.st_size < _REMEMBERED_BYTES:
        return _read_digest(path)
    state = _state(status)
    memory = cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"
    try:
        kept = json.loads(memory.read_text(encoding="utf-8"))
        if kept["state"] == state:
            return str(kept["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = _read_digest(path)
    # A file that was written a moment ago may be written again without a change of its times.
    if _state(path.stat()) == state and time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS:
        with contextlib.suppress(OSError):  # a cache is no must
            write_json(memory, {"state": state, "sha256": found})
    return found


def _read_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(status: os.stat_result) -> list[int]:
    """What changes when a file's contents do."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def cache_folder() -> Path:
    """The user's folder for what can be computed again: IDC_CACHE, else the usual place of the system's caches."""
    if os.environ.get("IDC_CACHE"):
        return Path(os.environ["IDC_CACHE"]).expanduser()
    usual = os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~")) / ".cache"  # noqa: PTH111  never raises
    return Path(usual) / "idcompress"
