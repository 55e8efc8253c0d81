"""Open Images: photographs in train/, validation/ and test/"""

from __future__ import annotations

from ..errors import IdcError
from ..images.photo_sets import PhotographSet, check_split, folders, found_in, from_folder

_FOLDERS = {"train": "train", "search": "validation", "evaluate": "test", "all": "test"}


def load(path: str | list[str] | None, split: str) -> PhotographSet:
    """List photographs: train/ to train, validation/ to search, test/ to evaluate and "all".

    Folders of parts, like train/train_0/, are read as well.

    Raises:
        IdcError: the folder of this split is not there.
    """
    check_split(split)
    roots = [] if path is None else folders(path)
    folder = _FOLDERS[split]
    if len(roots) != 1 or not (roots[0] / folder).is_dir():
        found = "; ".join(f"{root}: {found_in(root)}" for root in roots) or "null"
        raise IdcError(f"data=open_images wants data.path=FOLDER with {folder}/ for this; got {found}")
    photos = from_folder(str(roots[0] / folder))
    photos.own_splits = True
    return photos
