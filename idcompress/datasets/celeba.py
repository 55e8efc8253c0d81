"""CelebA: aligned faces with the published split"""

from __future__ import annotations

from ..errors import IdcError
from ..images.photo_sets import Files, PhotographSet, check_split, folders, found_in
from ..images.pictures import some, warn_once

_PARTITION = "list_eval_partition.txt"
_TRAIN, _VALIDATION, _TEST = "0", "1", "2"


def load(path: str | list[str] | None, split: str) -> PhotographSet:
    """List faces by `list_eval_partition.txt`: training to train, validation to search, test to evaluate and "all".

    Raises:
        IdcError: the folder of images or the list of the split is not there or not as it should be.
    """
    check_split(split)
    roots = [] if path is None else folders(path)
    if len(roots) != 1 or not (roots[0] / "img_align_celeba").is_dir() or not (roots[0] / _PARTITION).is_file():
        found = "; ".join(f"{root}: {found_in(root)}" for root in roots) or "null"
        raise IdcError(f"data=celeba wants data.path=FOLDER with img_align_celeba/ and {_PARTITION}; got {found}")
    root = roots[0]
    wanted = {"train": _TRAIN, "search": _VALIDATION}.get(split, _TEST)
    try:
        rows = [line.split() for line in (root / _PARTITION).read_text(encoding="utf-8").splitlines() if line.strip()]
        names = [name for name, part in rows if part == wanted]
    except ValueError:
        raise IdcError(f"{root / _PARTITION}: want lines like 000001.jpg 0") from None
    there = {entry.name for entry in (root / "img_align_celeba").iterdir() if entry.stat().st_size}
    missing = [name for name in names if name not in there]
    if missing:
        warn_once(f"{len(missing)} faces of the {split} split are not there and are left out: {some(missing)}")
    present = [name for name in names if name in there]
    if not present:
        raise IdcError(f"{root / 'img_align_celeba'} holds no face of the {split} split of {_PARTITION}")
    stems = [name.rpartition(".")[0] for name in present]
    return Files(stems, [str(root / "img_align_celeba" / name) for name in present], own_splits=True)
