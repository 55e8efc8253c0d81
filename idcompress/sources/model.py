"""A loaded model, and what a recipe makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from .. import registry
from ..adapters.pipeline import with_components
from ..adapters.unet import sharing
from ..core.cut import Cut
from ..core.process import Process
from ..errors import IdcError
from ..runs import files
from ..runs.recipe import Recipe
from ..schedulers import process_of
from ..types import CutRequest
from . import folders

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Model:
    """A loaded model, whole, and the method that its recipes are cut by.

    Attributes:
        pipeline: the diffusers pipeline, in eval mode, on its device.
        source: what a recipe says of it: name, path, revision, digest.
        prune: registered name of the prune method for cuts that do not exist yet; a cut that does names its own.
        parameters: the configured ones of that method's `candidates`.
        places: the folder of each component that was loaded from one.
    """

    pipeline: Any
    source: dict[str, Any]
    prune: str = "depth_skip"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, Path] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return str(self.source["digest"])

    @cached_property
    def process(self) -> Process:
        """What the pipeline's timesteps mean, by its scheduler."""
        return process_of(self.pipeline.scheduler)

    def candidates(self, request: CutRequest | None = None) -> list[Cut]:
        """The cuts that a search may choose from, the whole model first and then ever smaller ones."""
        found: list[Cut] = self._method(self.prune).candidates(
            self.pipeline.components, request or CutRequest(), **self.parameters
        )
        return found

    @property
    def needs(self) -> tuple[str, ...]:
        """What the prune method asks a request for."""
        return needs_of(self._method(self.prune), self.parameters)

    @property
    def full_depth(self) -> int:
        """Levels of the U-Net by the prune method's count; 1 where the method knows no depths."""
        method = self._method(self.prune)
        return int(method.levels(self.pipeline.components)) if hasattr(method, "levels") else 1

    def chosen(self, depth: int) -> Cut:
        """The cut that the key depth= names.

        Raises:
            IdcError: the prune method has no depths.
        """
        method = self._method(self.prune)
        if not hasattr(method, "chosen"):
            raise IdcError(f"depth={depth}: prune={self.prune} has no depths; use prune=depth_skip or drop depth=")
        found: Cut = method.chosen(depth, **self.parameters)
        return found

    def given(self, request: CutRequest) -> Cut | None:
        """The cut that the prune method's parameters settle; None where it searches for one."""
        return None if getattr(self._method(self.prune), "SEARCHES", True) else self.candidates(request)[-1]

    def matched_features(self, pipeline: Any, cut: Cut | None) -> dict[str, str] | None:
        """Modules of a cut U-Net whose outputs distillation compares -> the whole one's; None: the trainer finds them.

        Args:
            pipeline: after the cut.
        """
        match = None if cut is None else getattr(self._method(cut.method), "matched_features", None)
        return None if match is None else match(pipeline.components, cut)

    def cut_ends(self, pipeline: Any, cut: Cut | None) -> list[str]:
        """Patterns of the parameters whose layers a cut gave other inputs; all, where the method cannot tell.

        Args:
            pipeline: after the cut.
        """
        if cut is None or self.is_whole(cut):
            return []
        method = self._method(cut.method)
        return [f"{name}.*" for name in method.ends(pipeline.components)] if hasattr(method, "ends") else ["*"]

    def words(self, cut: Cut | None) -> str:
        """A cut as people name it: "depth 9 of 13"."""
        method = self._method(self.prune if cut is None else cut.method)
        return str(method.words(self.pipeline.components, cut))

    def is_whole(self, cut: Cut | None) -> bool:
        """Whether a cut keeps everything."""
        return cut is None or not self._replaced(cut)

    def at(self, cut: Cut | None) -> Any:
        """The pipeline after a cut. What it keeps of the whole model is shared with it: copy what is to be trained."""
        return self.pipeline if cut is None else with_components(self.pipeline, self._replaced(cut))

    def calibrated(self, cut: Cut, request: CutRequest) -> tuple[Any, list[str]]:
        """The pipeline after a cut with the weights that its method computes on calibration images, if it does.

        Returns:
            the pipeline, and the components whose weights are not simply the whole model's: a recipe must store them.
        """
        replaced, method = self._replaced(cut), self._method(cut.method)
        names: list[str] = []
        if replaced and hasattr(method, "is_calibrated") and method.is_calibrated(cut):
            names = method.calibrate(self.pipeline.components, replaced, cut, request)
        return with_components(self.pipeline, replaced), names

    def cut_further(self, pipeline: Any, depth: int) -> Any:
        """A pipeline of this model, cut or fine-tuned, at a smaller depth: what a step that names one computes."""
        cut = Cut(self.prune, {"depth": self.chosen(depth).choice["depth"]})  # zeros, whatever the recipe's own cut has
        return with_components(pipeline, self._method(cut.method).apply(pipeline.components, cut))

    def for_recipe(self, recipe: Recipe) -> Any:
        """The pipeline cut as a recipe says, with its fine-tuned weights if it has any."""
        pipeline = self.at(recipe.cut)
        if recipe.weights:  # which take the place of the whole model's in modules of their own
            pipeline = with_components(pipeline, {name: sharing(getattr(pipeline, name)) for name in recipe.weights})
            load_weights(pipeline, recipe)
        return pipeline

    def stored_dtype(self, component: str) -> torch.dtype:
        """The dtype of a network's weights on disk; float32 where they have several, or come from nowhere."""
        found = folders.stored_dtypes(self.places[component]) if component in self.places else set()
        return _DTYPES.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32

    def _replaced(self, cut: Cut) -> dict[str, Any]:
        replaced: dict[str, Any] = self._method(cut.method).apply(self.pipeline.components, cut)
        return replaced

    def _method(self, name: str) -> ModuleType:
        return registry.load("prune", name, "prune.name")


def needs_of(method: ModuleType, parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """What a prune method asks a request for: its NEEDS, or what it needs for these parameters."""
    return tuple(method.needs(**parameters) if hasattr(method, "needs") else getattr(method, "NEEDS", ()))


def load_weights(pipeline: Any, recipe: Recipe) -> None:
    """Put a recipe's fine-tuned weights in the place of those of a pipeline that was cut as it says.

    Raises:
        IdcError: a file is missing, was changed since the recipe was written, or does not fit.
    """
    for name, entry in recipe.weights.items():
        path = (recipe.folder or Path()) / entry["file"]
        if not path.is_file():
            raise IdcError(f"the recipe's weights {path} are missing; copy them together with recipe.json")
        folders.check_safetensors(path)
        if files.file_digest(path) != entry["sha256"]:
            raise IdcError(f"{path} is not the file that the recipe was written with (its SHA-256 differs)")
        component: nn.Module = getattr(pipeline, name)
        like = next(component.parameters())
        try:
            component.load_state_dict({k: v.to(like) for k, v in load_file(path).items()}, assign=True)
        except RuntimeError as error:
            raise IdcError(f"{path} does not fit the {name} after the cut of this recipe: {error}") from None
