"""InstructPix2Pix's edited pairs, in the authors' folders or as Hugging Face parquet files"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..console import progress
from ..errors import IdcError
from ..images.photo_sets import Photograph, PhotographSet, cut, folders, found_in
from ..images.pictures import some, walk, warn_once
from ..images.prompts import prompt_in

_LAYOUTS = (
    "seeds.json beside folders with prompt.json, <seed>_0.jpg and <seed>_1.jpg (clip-filtered-dataset), or *.parquet "
    "files (timbrooks/instructpix2pix-clip-filtered)"
)
_COLUMNS = ("original_image", "original_prompt", "edit_prompt", "edited_prompt", "edited_image")
_CAPTIONS = ("original_prompt", "edited_prompt")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_WHOLE = (1.0, 1.0)  # of training crops: the pictures are squares


def load(path: str | list[str] | None, split: str) -> PhotographSet:
    """List the pairs; splits are by position, 90 % / 5 % / 5 % of the instructions (of the rows in parquet files, where
    a cut between two pairs of one instruction on one scene moves behind them).

    Every pair is visited once an epoch, unlike the original's one pair of each instruction. Training takes whole
    pictures, resized, as the original does.

    Raises:
        IdcError: the folder has neither layout, or a split holds no pair.
    """
    roots = [] if path is None else folders(path)
    if len(roots) != 1:
        raise IdcError(f"data=instruct_pix2pix wants data.path=FOLDER, one that holds {_LAYOUTS}; got {path}")
    root = roots[0]
    listed = (root / "seeds.json").is_file()
    below = walk(root) if root.is_dir() and not listed else []
    tables = sorted(root / name for name in below if name.endswith(".parquet"))
    found: PhotographSet
    if listed:
        found = _Folders(root, split)
    elif tables:
        found = _Tables(root, tables, split)
    else:
        raise IdcError(f"data.path={root}: want {_LAYOUTS}; found {found_in(root)}")
    if not found:
        raise IdcError(f"{root} is so small that its {split} split is empty; data.split=all takes every pair")
    return found


class _Folders(PhotographSet):
    """<root>/<prompt>/<seed>_0.jpg and _1.jpg, as seeds.json lists them: [[prompt, [seed, ...]], ...].

    Pairs that are not there, as in a partial download, are left out and counted; splits are those of the others. The
    pictures may also be called .jpeg, .png or .webp.
    """

    crop_scales = _WHOLE

    def __init__(self, root: Path, split: str) -> None:
        self._root, source = root, root / "seeds.json"
        try:
            listed: list[tuple[str, list[str]]] = json.loads(source.read_text(encoding="utf-8-sig"))
            wanted = [(str(prompt), [str(seed) for seed in seeds]) for prompt, seeds in listed]
        except (ValueError, TypeError, KeyError):
            raise IdcError(f"{source} is damaged; want a list of [folder, [seed, ...]]") from None
        whole, missing = [], []
        for prompt, seeds in progress(wanted, "listing pairs", len(wanted)):
            there = _whole_pairs(f"{root}/{prompt}", seeds)
            if there:
                whole.append([f"{prompt}/{seed}" for seed in there])
            if len(there) < len(seeds):
                missing += [f"{prompt}/{seed}" for seed in seeds if seed not in there]
        if wanted and not whole:
            raise IdcError(
                f"{source} lists {len(missing)} pairs, and none is there whole; want prompt.json, <seed>_0.jpg and "
                f"<seed>_1.jpg in {root / wanted[0][0]} and the like; found {found_in(root)}"
            )
        if missing:
            number = len(missing) + sum(map(len, whole))
            warn_once(f"{source}: {len(missing)} of {number} pairs are not there and are left out: {some(missing)}")
        self._pairs = [pair for i in cut(len(whole), split) for pair in whole[i]]
        super().__init__(self._pairs, [len(self._pairs)], own_splits=True)

    def photograph(self, index: int) -> Photograph:
        name = self._pairs[index]
        place = self._root / name.partition("/")[0] / "prompt.json"
        try:
            texts = json.loads(place.read_text(encoding="utf-8-sig"))
            prompt = prompt_in({"edit": texts["edit"]}, str(place))
        except FileNotFoundError:
            raise IdcError(f"there is no {place}, though seeds.json lists it") from None
        except (ValueError, KeyError, TypeError):
            raise IdcError(f'{place} is damaged; want {{"edit": "...", "input": "...", "output": "..."}}') from None
        captions = (texts["input"], texts["output"]) if "input" in texts and "output" in texts else None
        before, after = (self._picture(f"{name}_{number}") for number in (0, 1))
        return Photograph(name, before, prompt, Photograph(f"{name}_1", after), captions)

    def _picture(self, stem: str) -> Path:
        paths = [self._root / f"{stem}{suffix}" for suffix in _SUFFIXES]
        return next((path for path in paths if path.is_file()), paths[0])


def _whole_pairs(folder: str, seeds: list[str]) -> list[str]:
    """The seeds whose pairs lie whole in a folder; none if it lacks their prompt."""
    try:
        names = set(os.listdir(folder))  # noqa: PTH208  no Path for each of millions
    except OSError:
        return []

    def there(stem: str) -> bool:
        return f"{stem}.jpg" in names or any(stem + suffix in names for suffix in _SUFFIXES)

    return [seed for seed in seeds if there(f"{seed}_0") and there(f"{seed}_1")] if "prompt.json" in names else []


class _Tables(PhotographSet):
    """Parquet files of one row per pair; a row group is read at a time and kept until another one is wanted."""

    crop_scales = _WHOLE

    def __init__(self, root: Path, tables: list[Path], split: str) -> None:
        groups = []
        for table in tables:
            metadata = _open(table).metadata
            groups += [(table, group, metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]
        wanted = cut(sum(rows for _, _, rows in groups), split)
        wanted = range(_behind_pairs(groups, wanted.start), _behind_pairs(groups, wanted.stop))
        # What the split has of each row group: (file, group, first row, number of rows).
        self._parts: list[tuple[Path, int, int, int]] = []
        end = 0
        for table, group, rows in groups:
            begin, end = end, end + rows
            first, last = max(begin, wanted.start), min(end, wanted.stop)
            if first < last:
                self._parts.append((table, group, first - begin, last - first))
        self._kept: tuple[tuple[Path, int], Any] | None = None
        listing = [[str(table.relative_to(root)), group, first, rows] for table, group, first, rows in self._parts]
        super().__init__(listing, [rows for *_, rows in self._parts], own_splits=True)

    def photograph(self, index: int) -> Photograph:
        part = self.shard(index)
        table, group, first, _ = self._parts[part]
        row = first + index - int(self._starts[part])
        name, place = f"{table.stem}/{group}_{row}", f"{table}, row group {group}, row {row}"
        texts = {
            column: prompt_in({column: self._cell(table, group, row, column)}, place, (column,))
            for column in ("edit_prompt", *_CAPTIONS)
        }
        before, after = (
            functools.partial(self._image, table, group, row, column) for column in ("original_image", "edited_image")
        )
        target = Photograph(f"{name}_1", table, read=after)
        captions = (texts["original_prompt"], texts["edited_prompt"])
        return Photograph(name, table, texts["edit_prompt"], target, captions, before)

    def _image(self, table: Path, group: int, row: int, column: str) -> bytes:
        cell = self._cell(table, group, row, column)
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise IdcError(f"{table}, row group {group}, row {row}: {column} holds no image bytes")
        return data

    def _cell(self, table: Path, group: int, row: int, column: str) -> Any:
        if self._kept is None or self._kept[0] != (table, group):
            self._kept = None  # the old one goes before the new one comes
            self._kept = (table, group), _read_group(table, group)
        return self._kept[1].column(column)[row].as_py()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


def _behind_pairs(groups: list[tuple[Path, int, int]], row: int) -> int:
    """The first row from this one on whose instruction or scene differs from that of the row before."""
    starts = list(itertools.accumulate((rows for _, _, rows in groups), initial=0))

    @functools.lru_cache(maxsize=2)
    def read(place: int) -> list[dict[str, Any]]:
        texts: list[dict[str, Any]] = _read_group(*groups[place][:2], ("edit_prompt", "original_prompt")).to_pylist()
        return texts

    def texts(row: int) -> dict[str, Any]:
        place = bisect.bisect_right(starts, row) - 1
        return read(place)[row - starts[place]]

    while 0 < row < starts[-1] and texts(row) == texts(row - 1):
        row += 1
    return row


def _open(table: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise IdcError("parquet files want pyarrow; pip install 'idcompress[data]'") from None
    try:
        file = parquet.ParquetFile(table)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise IdcError(f"{table} is a damaged parquet file ({error}); copy or fetch it again") from None
    missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
    if missing:
        raise IdcError(f"{table} lacks the columns {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}")
    return file


def _read_group(table: Path, group: int, columns: Sequence[str] = _COLUMNS) -> Any:
    try:
        return _open(table).read_row_group(group, columns=list(columns))
    except (OSError, ValueError) as error:
        raise IdcError(f"{table}, row group {group}, is damaged ({error}); copy or fetch the file again") from None
