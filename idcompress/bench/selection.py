"""Which photographs serve which purpose: none serves both a search and its evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import registry
from ..errors import IdcError
from ..images import photo_sets
from ..runs.recipe import Recipe

_CANDIDATES = 512  # photographs considered of a larger set, evenly spread over it, because neighbours are often alike


@dataclass(frozen=True)
class DataSource:
    """A data set as it was asked for.

    Attributes:
        name: registered name.
        path: its folder, or a list of them; None for photographs in installed packages.
        split: "auto", or one of the data set's splits in place of the purpose's own.
        search_split: "auto", or the data set's split that searches take, whatever `split` is.
        options: parameters of the data set's own.
    """

    name: str = "photographs"
    path: str | list[str] | None = None
    split: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    search_split: str = "auto"

    def split_for(self, purpose: str) -> str:
        """The data set's split that serves a purpose, which is "train", "search" or "evaluate"."""
        if purpose == "search" and self.search_split != "auto":
            return self.search_split
        return purpose if self.split == "auto" else self.split

    @property
    def label(self) -> str:
        """The data set in words."""
        if self.path is None:
            return "photographs in scikit-image, scikit-learn and matplotlib"
        paths = self.path if isinstance(self.path, list) else [self.path]
        return ("" if self.name == "photographs" else f"{self.name}: ") + ", ".join(paths)

    def load(self, split: str) -> photo_sets.PhotographSet:
        """List a split.

        Raises:
            IdcError: the data set is not as its loader expects.
        """
        load = registry.load("data", self.name, "data").load
        options = registry.bind(load, dict(self.options), "data.options")
        found: photo_sets.PhotographSet = load(self.path, split, **options)
        return found


def choose_photographs(
    data: DataSource, recipe: Recipe, split: str, num_samples: int | None = None
) -> photo_sets.PhotographSet:
    """The photographs of a split; for evaluation those that no search of the recipe has seen.

    Args:
        split: "train", "search" or "evaluate"; the source's configured splits overrule it. If a data set has no splits
            of its own, evaluation takes all of it except what was seen, or only the evaluation half where a training
            saw too many photographs to list them.
        num_samples: how many are wanted, spread over the set; None wants all.

    Raises:
        IdcError: the data set is not as its loader expects, or no photograph is left.
    """
    chosen = data.split_for(split)
    found = data.load(chosen)
    listed = all(entry.get("photographs") for entry in recipe.provenance if entry["stage"] == "finetune")
    if chosen == "evaluate" and data.split == "auto" and not found.own_splits and listed:
        found = data.load("all")
    if num_samples is not None and len(found) >= 2 * max(num_samples, _CANDIDATES):
        step = len(found) // max(num_samples, _CANDIDATES)
        found = photo_sets.Subset(found, range(0, len(found), step))
    left = photo_sets.without(found, recipe.searched_photographs() if chosen in ("evaluate", "all") else ())
    if not left:
        raise IdcError(
            f"no photograph of {data.label} is left for {chosen}: all {len(found)} were seen by the search of "
            "this recipe; give others by data.path"
        )
    return left
