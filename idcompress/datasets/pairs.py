"""Pairs in two folders of equal file names: what is given, and the true result"""

from __future__ import annotations

from dataclasses import replace

from ..errors import IdcError
from ..images.photo_sets import Files, Photograph, PhotographSet, check_split, folders, found_in, from_folder
from ..images.pictures import some, warn_once
from ..runs import files


class Pairs(Files):
    """Image files, each with the one of its name in another folder as its target."""

    def __init__(self, names: list[str], given: list[str], true: list[str]) -> None:
        """Make a set of files, in this order.

        Args:
            names: what the pairs are called.
            given, true: their files.
        """
        targets = Files(names, true)
        self._targets = dict(zip(given, targets, strict=True))
        super().__init__(names, given)
        self.digest = files.digest([self.digest, targets.digest])

    def photograph(self, index: int) -> Photograph:
        photo = super().photograph(index)
        return replace(photo, target=self._targets[str(photo.path)])


def load(path: str | list[str] | None, split: str) -> PhotographSet:
    """List pairs of the names that both folders hold; the others are left out and counted.

    Searches and training share one half, evaluations have the other.

    Raises:
        IdcError: not two folders, or no name in both.
    """
    check_split(split)
    roots = [] if path is None else folders(path)
    if len(roots) != 2:
        found = "; ".join(f"{root}: {found_in(root)}" for root in roots) or "null"
        raise IdcError(f"data=pairs wants data.path=[GIVEN,TRUE], two folders of equal file names; got {found}")
    given, true = ({photo.name: str(photo.path) for photo in from_folder(str(root))} for root in roots)
    names = sorted(given.keys() & true.keys())
    if not names:
        held = f"{found_in(roots[0])} and {found_in(roots[1])}"
        raise IdcError(f"{roots[0]} and {roots[1]} have no file name in common; they hold {held}")
    for root, others in ((roots[0], given), (roots[1], true)):
        alone = sorted(others.keys() - set(names))
        if alone:
            warn_once(f"{len(alone)} images of {root} have no partner of their name and are left out: {some(alone)}")
    pairs = Pairs(names, [given[name] for name in names], [true[name] for name in names])
    return pairs if split == "all" else pairs.half("search" if split == "train" else split)
