"""Photographs to train, search and evaluate on: listed first, opened when they are used.

No photograph serves both a search and its evaluation: every source has halves that share no file content, or a split
of its own.
"""

from __future__ import annotations

import hashlib
import io
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ..errors import IdcError, did_you_mean
from ..runs import files
from .pictures import decode_image, is_image, list_files, load_image, some, warn_once
from .prompts import count_missing, has_text_file, text_file_prompt, texts_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

HALVES = ("search", "evaluate")
SPLITS = ("train", *HALVES, "all")
# Packages and paths of photographs that are in no model's training set. The right-hand picture of motorcycle_left's
# stereo pair is left out, since both halves would then share its scene.
_PACKAGED = {
    "search": (
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/rocket.jpg"),
        ("skimage", "data/motorcycle_left.png"),
        ("sklearn", "datasets/images/flower.jpg"),
    ),
    "evaluate": (
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/hubble_deep_field.jpg"),
        ("sklearn", "datasets/images/china.jpg"),
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ),
}
_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}


@dataclass(frozen=True)
class Photograph:
    """A photograph that is opened when it is used.

    Attributes:
        name: unique in its source.
        path: the file, or the shard that holds it among others.
        prompt: caption or instruction that came with it, "" if none did.
        target: the picture that `prompt` made of it, where the source has pairs.
        captions: what the photograph and the target show, in words, where the source says so.
        read: gives the bytes of one inside a shard; None: they are those of the file.
        low: a small copy to restore it from, where the source gives one.
    """

    name: str
    path: Path
    prompt: str = ""
    target: Photograph | None = None
    captions: tuple[str, str] | None = None
    read: Callable[[], bytes] | None = None
    low: Photograph | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the image file's bytes; raises IdcError where they cannot be read."""
        if self.read is not None:
            return hashlib.sha256(self.read()).hexdigest()
        try:
            return files.file_digest(self.path)
        except OSError as error:
            raise IdcError(f"the image file {self.path} cannot be read ({error.strerror})") from None

    def open(self) -> Image.Image:
        """The photograph as 8-bit RGB; raises IdcError for a bad file."""
        if self.read is None:
            return load_image(self.path)
        return decode_image(io.BytesIO(self.read()), f"{self.name} in {self.path}")


class PhotographSet(Sequence[Photograph]):
    """Photographs that are listed, not opened; a listing of 300,000 takes seconds and little memory.

    Attributes:
        digest: of the listing (names, sizes, options), for provenance.
        own_splits: whether the data set says which of its photographs are for evaluation; halves are taken else.
        crop_scales: range of a training crop's side, as a share of the photograph's shorter side.
    """

    crop_scales: tuple[float, float] = (0.5, 1.0)

    def __init__(self, listing: Any, shards: Sequence[int], *, own_splits: bool = False) -> None:
        """Make a set of what the shards hold, one after the other.

        Args:
            listing: a JSON value that differs where the photographs do.
            shards: number of photographs in each file that holds many; that of all where each has a file of its own.
        """
        self.digest = files.digest(listing)
        self.own_splits = own_splits
        self._starts = np.concatenate([[0], np.cumsum(np.asarray(shards, dtype=np.int64))])

    @abstractmethod
    def photograph(self, index: int) -> Photograph:
        """The photograph at 0 <= index < len."""

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """A permutation of the indices, in which training visits them: shards in turn, so that one is open at a time.

        Args:
            seed, epoch: not negative; they alone choose the permutation.
        """
        rng = np.random.default_rng((seed, epoch))
        bounds = [(self._starts[i], self._starts[i + 1]) for i in rng.permutation(len(self._starts) - 1)]
        return np.concatenate([start + rng.permutation(end - start) for start, end in bounds]).astype(np.int64)

    def shard(self, index: int) -> int:
        """Position of the shard that holds a photograph."""
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Photograph: ...
    @overload
    def __getitem__(self, index: slice) -> list[Photograph]: ...
    def __getitem__(self, index: int | slice) -> Photograph | list[Photograph]:
        if isinstance(index, slice):
            return [self.photograph(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"photograph {index} of {len(self)}")
        return self.photograph(int(index) % len(self))


class Subset(PhotographSet):
    """Some photographs of another set, by their indices."""

    def __init__(self, whole: PhotographSet, indices: Sequence[int]) -> None:
        self._whole, self._indices = whole, np.asarray(indices, dtype=np.int64)
        self.crop_scales = whole.crop_scales
        super().__init__([whole.digest, self._indices.tolist()], [len(self._indices)], own_splits=whole.own_splits)

    def photograph(self, index: int) -> Photograph:
        return self._whole[int(self._indices[index])]


class Files(PhotographSet):
    """Image files, each a photograph."""

    def __init__(
        self,
        names: Sequence[str],
        paths: Sequence[str],
        *,
        prompts: Mapping[str, str] | None = None,
        captions: Mapping[str, tuple[str, str]] | None = None,
        texts: bool = False,
        own_splits: bool = False,
    ) -> None:
        """Make a set of files, in this order.

        Args:
            names: what the photographs are called.
            paths: their files.
            prompts: by name; those that it leaves out have none.
            captions: likewise, of the photograph and of what its prompt makes of it.
            texts: whether a text file beside an image, of the same stem, is the prompt of one that has none.
        """
        self._names, self._paths, self._prompts, self._texts = names, paths, prompts or {}, texts
        self._captions = captions or {}
        self._sizes = [Path(path).stat().st_size for path in paths]
        own_prompts = {name: self._prompts[name] for name in names if name in self._prompts}
        own_captions = [{name: self._captions[name] for name in names if name in self._captions}]
        listing = [list(names), self._sizes, own_prompts, *filter(None, own_captions)]
        super().__init__(listing, [len(names)], own_splits=own_splits)

    def photograph(self, index: int) -> Photograph:
        name, path = self._names[index], Path(self._paths[index])
        prompt = self._prompts.get(name, "")
        prompt = text_file_prompt(path) if self._texts and not prompt else prompt
        return Photograph(name, path, prompt, captions=self._captions.get(name))

    def half(self, split: str) -> PhotographSet:
        """The search or the evaluation half: even and odd places in order of name, one file of each content.

        Only files of equal size are opened, to compare them.

        Raises:
            IdcError: there are fewer than two different photographs.
        """
        check_split(split, HALVES)
        chosen = self._distinct()
        if len(chosen) < len(HALVES):
            raise IdcError(
                "search and evaluation share no photograph, so they need at least 2 different ones; "
                f"got {len(chosen)}; add photographs to data.path"
            )
        return Subset(self, chosen[HALVES.index(split) :: len(HALVES)])

    def _distinct(self) -> list[int]:
        """Indices in order of name, the first of each content: told by size, then by the first bytes, then by all."""
        groups = [sorted(range(len(self)), key=self._names.__getitem__)]
        for key in (self._sizes.__getitem__, self._head, self._digest):
            finer: dict[tuple[int, Any], list[int]] = {}
            for number, group in enumerate(groups):
                for index in group:
                    finer.setdefault((number, key(index) if len(group) > 1 else None), []).append(index)
            groups = list(finer.values())
        return sorted((group[0] for group in groups), key=self._names.__getitem__)

    def _head(self, index: int) -> bytes:
        with Path(self._paths[index]).open("rb") as file:
            return file.read(4096)

    def _digest(self, index: int) -> str:
        return files.file_digest(Path(self._paths[index]))


def packaged(split: str) -> Files:
    """The public photographs inside scikit-image, scikit-learn and matplotlib; they are found, never fetched.

    Args:
        split: "search" or "train" (4 photographs), "evaluate" (5 others) or "all".

    Raises:
        IdcError: a package lacks its file.
    """
    check_split(split)
    halves = HALVES if split == "all" else ("search" if split == "train" else split,)
    chosen = [entry for half in halves for entry in _PACKAGED[half]]
    names = [Path(file).stem for _, file in chosen]
    return Files(names, [str(_inside(package, file)) for package, file in chosen], own_splits=True)


def _inside(package: str, file: str) -> Path:
    # find_spec of a top-level package imports nothing; importing these takes seconds.
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    wanted = f"the photograph {Path(file).name} of {_DISTRIBUTIONS[package]}"
    raise IdcError(
        f"{wanted} is not installed; install {_DISTRIBUTIONS[package]} or give photographs by data.path=FOLDER"
    )


def from_folder(path: str | Path | Sequence[str], leave_out: Callable[[str], bool] | None = None) -> Files:
    """The photographs in a folder, or in several, and their subfolders, sorted by name.

    A `metadata.jsonl` or `metadata.csv` in the folder or in a subfolder (Hugging Face's imagefolder layout: a row per
    image, with `file_name` and one of `prompts.PROMPT_KEYS`) gives prompts, else a text file of an image's stem does.
    It may also give captions of an input and of its edited image, under one of the pairs of `prompts.CAPTION_KEYS`.
    How many have no prompt is said where others have one.

    Args:
        leave_out: whether an image, named from the folder on, is none of the photographs.

    Raises:
        IdcError: no such folder, no image in it, only empty ones, or a row of the metadata that is wrong.
    """
    rows: list[tuple[str, str]] = []
    prompts: dict[str, str] = {}
    captions: dict[str, tuple[str, str]] = {}
    missing: list[str] = []
    roots = folders(path)
    for root in roots:
        listed = list_files(root)
        images = [name for name in listed if is_image(name) and not (leave_out and leave_out(name))]
        images = _without_empty(root, images)
        stems = Counter(image.rpartition(".")[0] for image in images)
        prefix = f"{root.name}/" if len(roots) > 1 else ""
        everything = set(listed)
        given, described = texts_of(root, everything)
        for image in images:
            stem = image.rpartition(".")[0]
            name = prefix + (stem if stems[stem] == 1 else image)
            rows.append((name, str(root / image)))
            if given.get(image):
                prompts[name] = given[image]
            elif not has_text_file(image, everything):
                missing.append(name)
            if image in described:
                captions[name] = described[image]
    rows.sort()
    names = [name for name, _ in rows]
    if len(set(names)) < len(names):
        raise IdcError(f"data.path: {', '.join(map(str, roots))} hold files of the same names; rename a folder")
    count_missing(f"data.path={', '.join(map(str, roots))}", sorted(missing), len(names))
    return Files(names, [file for _, file in rows], prompts=prompts, captions=captions, texts=True)


def _without_empty(root: Path, images: list[str]) -> list[str]:
    """The images whose files have any content; others, as in a partial download, are counted.

    Raises:
        IdcError: none has.
    """
    empty = [image for image in images if not (root / image).stat().st_size]
    if empty and len(empty) == len(images):
        raise IdcError(f"{root} holds {len(empty)} images, and all are empty (0 bytes); copy or fetch them again")
    if empty:
        warn_once(f"{root}: {len(empty)} of {len(images)} images are empty and are left out: {some(sorted(empty))}")
        images = sorted({*images} - {*empty})
    return images


def folders(path: str | Path | Sequence[str]) -> list[Path]:
    """data.path as a list of folders."""
    return [Path(entry).expanduser() for entry in ([path] if isinstance(path, (str, Path)) else path)]


def found_in(folder: Path) -> str:
    """What a folder that lacks something holds, for the error."""
    if not folder.is_dir():
        return "a file" if folder.exists() else "no such folder"
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more if names else "nothing in it"


def cut(number: int, split: str) -> range:
    """Places of a split by position, as InstructPix2Pix does it: 90 % to train, 5 % to search, 5 % to evaluate."""
    check_split(split)
    first, second = math.floor(0.9 * number), math.floor(0.95 * number)
    bounds = {"train": (0, first), "search": (first, second), "evaluate": (second, number), "all": (0, number)}
    return range(*bounds[split])


def without(photographs: PhotographSet, digests: Collection[str]) -> PhotographSet:
    """Those whose content is not among `digests` (SHA-256 of file bytes); all of them are read if there are any."""
    if not digests:
        return photographs

    def is_left(index: int) -> bool:
        try:
            return photographs[index].digest not in digests
        except IdcError:  # told by whoever opens it
            return True

    return Subset(photographs, list(filter(is_left, range(len(photographs)))))


def digests_of(photographs: Sequence[Photograph], indices: Iterable[int]) -> dict[str, str]:
    """Name -> SHA-256 of the file's bytes, of those that can be read."""
    found = {}
    for index in indices:
        with suppress(IdcError):
            photograph = photographs[index]
            found[photograph.name] = photograph.digest
    return found


def check_split(split: str, known: Sequence[str] = SPLITS) -> None:
    """Raise IdcError for a split that is not among the known ones."""
    if split not in known:
        raise IdcError(f"there is no split {split!r}{did_you_mean(split, known)}")
