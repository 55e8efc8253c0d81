"""Any folder of images, or several, with captions where there are some"""

from __future__ import annotations

from ..images.photo_sets import PhotographSet, check_split, from_folder, packaged


def load(path: str | list[str] | None, split: str) -> PhotographSet:
    """List the images of folders; without a path, those that installed packages bring along.

    Args:
        split: "search" and "train" are one half, "evaluate" the other.
    """
    check_split(split)
    if path is None:
        return packaged(split)
    found = from_folder(path)
    return found if split == "all" else found.half("search" if split == "train" else split)
