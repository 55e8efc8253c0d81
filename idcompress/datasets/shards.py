"""Tar shards in WebDataset's layout, on a disk or behind a URL, for sets that are too large for anything else"""

from __future__ import annotations

import functools
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save

from ..console import progress
from ..errors import IdcError
from ..images.photo_sets import Photograph, PhotographSet, cut, found_in
from ..images.pictures import SUFFIXES, walk, warn_once
from ..images.prompts import PROMPT_KEYS, prompt_in
from ..runs import cache, files
from ..runs.run_dir import OUTPUTS

CACHE = OUTPUTS / "cache" / "shards"
_WANTED = "*.tar files whose members share a stem: 000000.jpg beside 000000.txt or 000000.json"
_CAPTION_KEYS = ("caption", *(key for key in PROMPT_KEYS if key != "caption"))


def load(path: str | list[str] | None, split: str, *, image: str = "", target: str = "") -> PhotographSet:
    """List the images of shards; splits are by position, 90 % / 5 % / 5 %.

    A text file is the caption, or else `caption`, `prompt`, `text` and the like of a JSON file. What is in which shard
    is read once and kept under outputs/cache/shards; shards behind a URL are fetched one at a time, for that and for
    use.

    Args:
        path: a folder of *.tar files, a tar file, a URL that fsspec knows, or a list of them.
        image: suffix of the images' members, like "jpg" or "input.jpg"; "" takes the first that is an image's.
        target: suffix of the edited pictures' members, like "edited.jpg"; "" where there are no pairs.

    Raises:
        IdcError: no shard there, a damaged one, or no image in them.
    """
    shards = [shard for entry in ([path] if isinstance(path, str) else path or []) for shard in _list(entry)]
    if not shards:
        raise IdcError(f"data=shards wants data.path=FOLDER with {_WANTED}; got {path}")
    tables = [_index(shard, image, target) for shard in progress(shards, "listing shards", len(shards))]
    found = _Shards(shards, tables, split)
    if not found:
        number = sum(len(table["key"]) for table in tables)
        raise IdcError(f"{path} holds {number} images, so its {split} split is empty; data.split=all takes every one")
    bare = sum(int(((table["txt"][:, 1] == 0) & (table["json"][:, 1] == 0)).sum()) for table in tables)
    number = sum(len(table["key"]) for table in tables)
    if 0 < bare < number:
        warn_once(f"data.path={path}: {bare} of {number} images have no caption")
    return found


def _list(entry: str) -> list[str]:
    if "://" in entry:
        return [entry]
    folder = Path(entry).expanduser()
    below = sorted(name for name in walk(folder) if name.endswith(".tar")) if folder.is_dir() else None
    shards = [str(folder)] if below is None else [str(folder / name) for name in below]
    if not shards or not Path(shards[0]).is_file():
        raise IdcError(f"data.path={entry}: want {_WANTED}; found {found_in(folder)}")
    return shards


class _Shards(PhotographSet):
    """Records of shards; the shard in use is open, and if it was fetched it is a temporary file without a name."""

    def __init__(self, shards: list[str], tables: list[dict[str, Any]], split: str) -> None:
        wanted = cut(sum(len(table["key"]) for table in tables), split)
        self._shards: list[str] = []
        self._tables: list[dict[str, Any]] = []
        end = 0
        for shard, table in zip(shards, tables, strict=True):
            begin, end = end, end + len(table["key"])
            kept = slice(max(begin, wanted.start) - begin, max(0, min(end, wanted.stop) - begin))
            if kept.start < kept.stop:
                self._shards.append(shard)
                self._tables.append({name: column[kept] for name, column in table.items()})
        self._open: tuple[str, IO[bytes]] | None = None
        listing = [[shard, table["image"].tolist()] for shard, table in zip(self._shards, self._tables, strict=True)]
        super().__init__(listing, [len(table["key"]) for table in self._tables], own_splits=True)

    def photograph(self, index: int) -> Photograph:
        number = self.shard(index)
        shard, table, row = self._shards[number], self._tables[number], index - int(self._starts[number])
        key = bytes(table["key"][row]).rstrip(b"\0").decode()
        name = f"{shard.rpartition('/')[2].removesuffix('.tar')}/{key}"
        prompt = self._prompt(shard, name, table, row)
        before, after = (
            functools.partial(self._read, shard, f"{name} ({kind})", *map(int, table[kind][row]))
            for kind in ("image", "target")
        )
        target = Photograph(f"{name}_1", Path(shard), read=after) if table["target"][row][1] else None
        return Photograph(name, Path(shard), prompt, target, read=before)

    def _prompt(self, shard: str, name: str, table: dict[str, Any], row: int) -> str:
        for kind in ("txt", "json"):
            offset, size = map(int, table[kind][row])
            if not size:
                continue
            try:
                text = self._read(shard, f"{name} ({kind})", offset, size).decode("utf-8-sig")
                if kind == "txt":
                    return text.strip()
                values = files.parse_json(text)
                if not isinstance(values, dict):
                    raise TypeError(f"want an object, got {type(values).__name__}")
                return prompt_in(values, f"{name}.{kind} in {shard}", _CAPTION_KEYS)
            except (ValueError, TypeError) as error:
                raise IdcError(f"{name}.{kind} in {shard} is damaged ({error})") from None
        return ""

    def _read(self, shard: str, name: str, offset: int, size: int) -> bytes:
        if self._open is None or self._open[0] != shard:
            if self._open is not None:
                self._open[1].close()
            self._open = shard, _open(shard)
        # By position, so that processes which inherit the open file do not disturb each other.
        data = os.pread(self._open[1].fileno(), size, offset)
        if len(data) < size:
            raise IdcError(f"{name} in {shard} is cut short; copy or fetch the shard again")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}


def _open(shard: str) -> IO[bytes]:
    """The shard's file; one behind a URL is fetched to a temporary file, which goes when it is closed."""
    if "://" not in shard:
        try:
            return Path(shard).open("rb")
        except OSError as error:
            raise IdcError(f"the shard {shard} cannot be read ({error.strerror})") from None
    try:
        import fsspec
    except ImportError:
        raise IdcError(f"{shard} wants fsspec; pip install 'idcompress[data]'") from None
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with fsspec.open(shard, "rb") as source:
            shutil.copyfileobj(source, copy, 1 << 20)
    except Exception as error:  # whatever the file system behind the URL raises
        copy.close()
        raise IdcError(f"the shard {shard} cannot be fetched ({type(error).__name__}: {error})") from None
    copy.seek(0)
    return copy


def _index(shard: str, image: str, target: str) -> dict[str, Any]:
    """What a shard holds: `key` (N,) bytes, and per kind of member (N, 2) offset and size, 0 and 0 where it lacks one.

    Kept beside the runs; a shard on a disk is looked at again when its size or time changes.
    """
    state: list[Any] = [shard, image, target]
    if "://" not in shard:
        status = Path(shard).stat()
        state += [str(Path(shard).resolve()), status.st_size, status.st_mtime_ns]
    cached = CACHE / f"{files.digest(state)}.safetensors"
    kept = cache.read(cached, load_arrays)
    if kept is not None:
        return dict(kept)
    with _open(shard) as file:
        try:
            records = _read_members(file, image, target)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise IdcError(f"the shard {shard} is no readable tar file ({error}); fetch it again") from None
    if not records:
        raise IdcError(f"the shard {shard} holds no image; want {_WANTED} (data.options.image={image or 'any'})")
    keys = [key.encode() for key in records]
    width = max(map(len, keys))
    table: dict[str, Any] = {
        "key": np.frombuffer(b"".join(key.ljust(width, b"\0") for key in keys), np.uint8).reshape(len(keys), width)
    }
    for kind in ("image", "target", "txt", "json"):
        table[kind] = np.asarray([record.get(kind, (0, 0)) for record in records.values()], np.int64)
    cache.keep(cached, table, save)
    return table


def _read_members(file: IO[bytes], image: str, target: str) -> dict[str, dict[str, tuple[int, int]]]:
    """Key -> kind -> (offset, size), of records with an image; a key is a member's path up to the name's first dot."""
    records: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            folder, _, base = member.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            kind = _kind(suffix.lower(), image, target)
            if member.isfile() and stem and kind:
                key = f"{folder}/{stem}" if folder else stem
                records.setdefault(key, {}).setdefault(kind, (member.offset_data, member.size))
    file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
    if file.read().strip(b"\0"):  # tarfile takes a file that was cut between two members for a whole one
        raise EOFError("it lacks its end")
    return {key: record for key, record in records.items() if "image" in record}


def _kind(suffix: str, image: str, target: str) -> str:
    if target and suffix == target.lower():
        return "target"
    if suffix == image.lower() if image else f".{suffix}".endswith(SUFFIXES):
        return "image"
    return suffix if suffix in ("txt", "json") else ""
