"""What is kept below outputs/cache because it takes time to compute: how much, trimming, and emptying."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .run_dir import OUTPUTS

CACHE = OUTPUTS / "cache"
GB = 1e9


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
