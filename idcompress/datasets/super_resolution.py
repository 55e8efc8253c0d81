"""Super-resolution sets: DIV2K, Flickr2K, DIV8K, OST and the like, in one folder or several"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..errors import IdcError
from ..images.photo_sets import Files, Photograph, PhotographSet, check_split, folders, found_in, from_folder
from ..images.pictures import is_image, list_files

_WANTED = "DIV2K_train_HR/, DIV2K_valid_HR/, Flickr2K/ or other folders of images"


def _word(words: str, behind: str = "") -> re.Pattern[str]:
    """A word in a folder's name, in either case: between other signs than letters, or in capitals behind a small one.

    Args:
        behind: what else may follow the word, each after a |.
    """
    camel = r"(?<=[a-z])(?=[A-Z])"
    return re.compile(rf"(?:(?:^|[^A-Za-z])|{camel})(?i:{words})(?:$|[^A-Za-z]{behind}|{camel})")


_LOW = _word(r"LR|LQ|low[ _-]?(?:res(?:olution)?|quality)|^low$", "|x[0-9]|bic|mod")
_HIGH = _word(r"HR|HQ|GT|high[ _-]?(?:res(?:olution)?|quality)|ground[ _-]?truth|^high$", "|mod")
_HELD_OUT = _word("valid|validation|val|test|testing|eval|evaluation", "|HR|HQ|GT")
_TRAINING = _word("train|training", "|HR|HQ|GT")


def load(
    path: str | list[str] | None, split: str, *, inputs: Literal["degraded", "given"] = "degraded"
) -> PhotographSet:
    """List the high-resolution pictures; small copies (*_LR_*, lr, LQ, low_res, ...) play no part where the task
    degrades for itself, as it always does in training.

    Folders called HR, *_HR, hr_*, HQ, GT, high_res and the like hold the pictures where there are some. Of these, ones
    whose name, or else whose folder's, says valid, val, validation, test or eval serve searches and evaluations, a half
    each, and the others training. Without such folders halves of everything take their place.

    Args:
        inputs: given: searches and evaluations restore the small copies, files of these names in a folder beside.

    Raises:
        IdcError: no such folder, or none for this split; a picture has no small copy, or several.
    """
    check_split(split)
    roots = [] if path is None else folders(path)
    if not roots or not all(root.is_dir() for root in roots):
        found = "; ".join(f"{root}: {found_in(root)}" for root in roots) or "null"
        raise IdcError(f"data=super_resolution wants data.path=FOLDER with {_WANTED}; got {found}")
    chosen = [(root, folder) for root in roots for folder in _image_folders(root)]
    pictures = _split(roots, chosen, split)
    return pictures if inputs == "degraded" or split == "train" else _Pairs(pictures, [folder for _, folder in chosen])


def _split(roots: list[Path], chosen: list[tuple[Path, Path]], split: str) -> PhotographSet:
    """The pictures of a split, of folders that lie in roots."""
    held_out = [folder for root, folder in chosen if _is_held_out(root, folder)]
    training = [folder for _, folder in chosen if folder not in held_out]
    if not held_out or split == "all":
        everything = _list(roots, [folder for _, folder in chosen])
        return everything if split == "all" else everything.half("search" if split == "train" else split)
    if split == "train" and not training:
        raise IdcError(f"{', '.join(map(str, roots))} holds folders to evaluate only; want {_WANTED}")
    kept = _list(roots, training if split == "train" else held_out)
    kept.own_splits = True
    return kept if split == "train" else kept.half(split)


class _Pairs(PhotographSet):
    """Pictures with their small copies, which have their names in a folder called LR, lq, low or the like."""

    def __init__(self, whole: PhotographSet, chosen: Sequence[Path]) -> None:
        self._whole = whole
        beside = {folder: _small_copies(folder) for folder in chosen}
        self._low = [_small_copy(photo.path, beside) for photo in whole]
        listing = [whole.digest, [path.stat().st_size for path in self._low]]
        super().__init__(listing, [len(whole)], own_splits=whole.own_splits)

    def photograph(self, index: int) -> Photograph:
        photo, low = self._whole[index], self._low[index]
        return dataclasses.replace(photo, low=Photograph(photo.name, low))


def _small_copies(folder: Path) -> dict[tuple[str, ...], list[Path]]:
    """The pictures in folders of small copies that lie beside a folder or in it, by what `_pair` gives."""
    found: dict[tuple[str, ...], list[Path]] = {}
    for place in (folder.parent, folder):
        for low in sorted(entry for entry in place.iterdir() if entry.is_dir() and _is_low(entry.name)):
            for name in filter(is_image, list_files(low)):
                found.setdefault(_pair(Path(name)), []).append(low / name)
    return found


def _pair(name: Path) -> tuple[str, ...]:
    """What the names of a picture and its small copy share: 0801.png and X4/0801x4.png, 1_HR.png and 1_LR4.png."""
    stem = re.sub(r"([_-](HR|GT|HQ|LR|LR4|LQ|x4)|(?<=[0-9])x4)$", "", name.stem, flags=re.IGNORECASE)
    return (*name.parts[name.parts[0] in ("X4", "x4") : -1], stem)


def _small_copy(picture: Path, beside: dict[Path, dict[tuple[str, ...], list[Path]]]) -> Path:
    """The one small copy of a picture."""
    folder = next(folder for folder in beside if folder in picture.parents)
    found = beside[folder].get(_pair(picture.relative_to(folder)), [])
    if len(found) == 1:
        return found[0]
    raise IdcError(
        f"data.options.inputs=given: {picture} has {len(found) or 'no'} small {'copies' if found else 'copy'} of its "
        f"name ({', '.join(map(str, found)) or 'in a folder beside, called LR, lq, low or the like'}); want one, or "
        "data.options.inputs=degraded"
    )


def _list(roots: list[Path], chosen: list[Path]) -> Files:
    """The pictures of some folders, without small copies in folders below them."""
    return from_folder([str(folder) for folder in chosen], leave_out=lambda name: any(map(_is_low, _parts(name))))


def _parts(name: str) -> list[str]:
    """The folders of a file's name, and its own stem where that ends in LR."""
    *parents, stem = name.rpartition(".")[0].split("/")
    return [*parents, *([stem] if re.search(r"_(LR|lr)$", stem) else [])]


def _is_low(name: str) -> bool:
    return bool(_LOW.search(name))


def _is_held_out(root: Path, folder: Path) -> bool:
    """Whether a folder, or else the nearest one above it that says so, is to evaluate; the root's own is not asked."""
    names = [folder.name, *(parent.name for parent in folder.parents if root in parent.parents)]
    told = next((name for name in names if _HELD_OUT.search(name) or _TRAINING.search(name)), "")
    alone = folder != root or _HIGH.search(folder.name)
    return bool(alone and _HELD_OUT.search(told) and not _TRAINING.search(told))


def _image_folders(root: Path) -> list[Path]:
    """Folders of pictures at full resolution: those called *HR* where there are some, else the folder itself."""
    below = sorted(entry for entry in (root, *root.glob("*"), *root.glob("*/*")) if entry.is_dir())
    below = [folder for folder in below if not any(map(_is_low, folder.relative_to(root.parent).parts))]
    chosen: list[Path] = []
    places: set[Path] = set()
    for folder in below:
        place = folder.resolve()  # links to a folder that is there already add nothing
        if _HIGH.search(folder.name) and not places & {place, *place.parents}:
            chosen.append(folder)
            places.add(place)
    return chosen or [root]
