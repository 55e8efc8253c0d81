"""What is kept below outputs/cache because it takes time to compute: entries that know whether they are whole, how much
there is, trimming, and emptying.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ..console import warn
from ..errors import IdcError
from . import files
from .places import is_main_process
from .run_dir import OUTPUTS

CACHE = OUTPUTS / "cache"
GB = 1e9
_DIGEST = "entry_sha256"  # in the entry's own header
T = TypeVar("T", bound=Mapping[str, Any])


def keep(path: Path, tensors: T, save: Callable[[Any, dict[str, str]], bytes]) -> None:
    """Write an entry, whole or not at all, with a digest of its name and of all that it holds.

    It does not wait for the disk: what a loss of power leaves does not fit the digest, and is computed again.

    Args:
        save: safetensors' own for these tensors: (tensors, metadata) -> bytes.
    """
    if not is_main_process():
        return
    digest = _digest(path.stem, save(tensors, {}))
    files.write_bytes(path, save(tensors, {_DIGEST: digest}), durable=False)


def read(path: Path, load: Callable[[bytes], T]) -> T | None:
    """What an entry holds; None where it is not kept, or, with a warning, no longer as it was written.

    Args:
        load: safetensors' own, the counterpart of `keep`'s.
    """
    try:
        data = files.read_file(path, "cache")
    except FileNotFoundError:
        return None
    except (OSError, IdcError):
        data = b""
    try:
        noted = files.parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")].decode("utf-8"))
        if _DIGEST not in noted.get("__metadata__", {}):  # of a version that noted no digest
            return None
        whole = _digest(path.stem, data) == noted["__metadata__"][_DIGEST]
    except Exception:  # safetensors and its header raise what they like for bytes of another kind
        whole = False
    if not whole:
        warn(f"the entry {path} of the cache is damaged; it is computed again")
        return None
    with suppress(OSError):
        os.utime(path)  # the last use, by which the cache is trimmed
    return load(data)


def _digest(name: str, data: bytes) -> str:
    """Of an entry's name and tensors, so that no entry can take another's place."""
    from safetensors import deserialize

    digest = hashlib.sha256(name.encode())
    for tensor, value in sorted(deserialize(data)):  # type: ignore[no-untyped-call]
        digest.update(f"\n{tensor} {value['dtype']} {value['shape']}\n".encode())
        digest.update(value["data"])
    return digest.hexdigest()


def contents() -> dict[str, tuple[int, int]]:
    """What is there: name of a cache -> its entries and their bytes."""
    kinds = sorted(path for path in CACHE.iterdir() if path.is_dir()) if CACHE.is_dir() else []
    return {kind.name: (len(sizes := [size for _, _, size in _entries(kind)]), sum(sizes)) for kind in kinds}


def clear() -> int:
    """Remove every entry; a run that was about to read one computes it again. Gives the freed bytes."""
    freed = 0
    for kind in contents():
        for path, _, size in _entries(CACHE / kind):
            path.unlink(missing_ok=True)
            freed += size
    return freed


def trim(folder: Path, limit_gb: float) -> None:
    """Remove the entries of one cache that were used longest ago, until the others fit the limit."""
    if not is_main_process():
        return
    files.remove_temporaries(folder, older_than_s=3600)
    newest_first = sorted(_entries(folder), key=lambda entry: entry[1], reverse=True)
    held = 0
    for path, _, size in newest_first:
        held += size
        if held > limit_gb * GB:
            path.unlink(missing_ok=True)


def _entries(folder: Path) -> Iterator[tuple[Path, float, int]]:
    """Every file with the time of its last use and its size."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                found = entry.stat()
            except FileNotFoundError:  # another process removed it
                continue
            if entry.is_file():
                yield Path(entry.path), found.st_mtime, found.st_size
