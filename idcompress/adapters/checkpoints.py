"""Lightning's checkpoints on disk: streamed there, whole or absent, and read back mapped into memory."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ..errors import IdcError
from ..runs import files

CHECKPOINT = "last.ckpt"
PREVIOUS = "previous.ckpt"


class StreamedCheckpoints(TorchCheckpointIO):
    """Writes tensor by tensor into a file beside the target, on its own disk, and keeps the checkpoint before it.

    Lightning's own collects all bytes in memory, twice the size of what it saves, and then in the folder of temporary
    files, which is often small.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        previous = target.with_name(PREVIOUS)
        files.remove_unfinished(target)
        if target.is_file():  # at most two of them at any moment
            previous.unlink(missing_ok=True)
        with files.whole(target) as temporary:
            _stream(checkpoint, temporary)
            if target.is_file():
                target.replace(previous)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read(Path(path))


def _stream(checkpoint: dict[str, Any], path: Path) -> None:
    """torch.save, with the system's own error where the disk takes no more."""
    with path.open("wb") as file:
        watched = _Watched(file)
        try:
            torch.save(checkpoint, watched)  # type: ignore[arg-type]
        except RuntimeError:
            if watched.error is not None:
                raise watched.error from None
            raise


class _Watched:
    """A file that remembers the error of a write, which torch replaces by one of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def read(path: Path) -> dict[str, Any]:
    """A checkpoint whose tensors stay in the file until they are used.

    Raises:
        FileNotFoundError: there is none.
        IdcError: it is no whole checkpoint, or holds more than tensors and plain values.
    """
    try:
        found: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises many kinds of exception for a truncated file or one that holds code
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise IdcError(f"{_shown(path)} is not a whole checkpoint ({reason})") from None
    if not isinstance(found, dict):
        raise IdcError(f"{_shown(path)} is not a checkpoint: it holds a {type(found).__name__}")
    return found


def check(path: Path) -> dict[str, Any]:
    """As `read`, with every byte compared with its checksum.

    Raises:
        FileNotFoundError, IdcError: as `read`, and for a file of the right length with other bytes.
    """
    found = read(path)
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError) as error:
        broken = str(error)
    if broken is not None:
        raise IdcError(f"{_shown(path)} is not a whole checkpoint (damaged: {broken})")
    return found


def newest(folder: Path) -> tuple[Path, list[str]]:
    """The newest whole checkpoint of a run's folder, and what is wrong with a newer one.

    Raises:
        FileNotFoundError: there is no whole one; what is wrong with those that are there, if any, is its argument.
    """
    wrong = []
    for name in (CHECKPOINT, PREVIOUS):
        try:
            check(folder / name)
        except FileNotFoundError:
            continue
        except IdcError as error:
            wrong.append(str(error))
        else:
            return folder / name, wrong
    raise FileNotFoundError(wrong)


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)
