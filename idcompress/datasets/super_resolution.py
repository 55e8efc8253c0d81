"""Super-resolution sets: DIV2K, Flickr2K, DIV8K, OST and the like, in one folder or several"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import IdcError
from ..images.photo_sets import PhotographSet, check_split, folders, found_in, from_folder

_WANTED = "DIV2K_train_HR/, DIV2K_valid_HR/, Flickr2K/ or other folders of images"


def load(path: str | list[str] | None, split: str) -> PhotographSet:
    """List the high-resolution pictures; small copies (*_LR_*) play no part, since the task degrades for itself.

    Folders called *valid_HR, *val_HR or *test_HR serve searches and evaluations, a half each, and the others training.
    Without such folders halves of everything take their place.

    Raises:
        IdcError: no such folder, or none for this split.
    """
    check_split(split)
    roots = [] if path is None else folders(path)
    if not roots or not all(root.is_dir() for root in roots):
        found = "; ".join(f"{root}: {found_in(root)}" for root in roots) or "null"
        raise IdcError(f"data=super_resolution wants data.path=FOLDER with {_WANTED}; got {found}")
    chosen = [folder for root in roots for folder in _image_folders(root)]
    held_out = [folder for folder in chosen if re.search(r"(^|_)(valid|val|test)_HR$", folder.name)]
    training = [folder for folder in chosen if folder not in held_out]
    if not held_out or split == "all":
        everything = from_folder([str(folder) for folder in chosen])
        return everything if split == "all" else everything.half("search" if split == "train" else split)
    if split == "train" and not training:
        raise IdcError(f"{', '.join(map(str, roots))} holds folders to evaluate only; want {_WANTED}")
    kept = from_folder([str(folder) for folder in (training if split == "train" else held_out)])
    kept.own_splits = True
    return kept if split == "train" else kept.half(split)


def _image_folders(root: Path) -> list[Path]:
    """Folders of pictures at full resolution: those called *HR* where there are some, else the folder itself."""
    below = sorted(entry for entry in (root, *root.glob("*"), *root.glob("*/*")) if entry.is_dir())
    below = [folder for folder in below if not re.search(r"(^|_)LR(_|$)", str(folder.relative_to(root.parent)))]
    return [folder for folder in below if re.search(r"(^|_)HR$", folder.name)] or [root]
