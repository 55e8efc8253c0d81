"""Results that others are compared with, computed once per (weights, cut, plan, example, seed) and kept lossless."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..core.plan import Plan
from ..errors import IdcError
from ..runs import cache, files
from ..runs.recipe import Recipe
from ..types import Example

if TYPE_CHECKING:
    from .bench import Bench

CACHE = cache.CACHE / "references"


def key(bench: Bench, recipe: Recipe | None, plan: Plan, example: Example) -> str:
    """A digest of everything that an example's result depends on."""
    unet = bench.model.pipeline.unet
    cut = None if recipe is None or recipe.cut is None else recipe.cut.to_json()
    weights = {} if recipe is None else {name: entry["sha256"] for name, entry in recipe.weights.items()}
    value: dict[str, Any] = {
        "model": bench.model.digest,
        "cut": cut,
        "weights": weights,
        "task": bench.identity,
        "plan": plan.to_json(),
        "seed": bench.seed,
        "dtype": str(unet.dtype),
        "device": unet.device.type,
        "example": content(example),
    }
    return files.digest(value)


def content(value: Any, where: str = "example") -> Any:
    """A value as JSON, such that different values give different JSON; covers every field that an example has.

    Args:
        where: the value's place, for the error.

    Raises:
        IdcError: a value of a kind whose contents cannot be told from another's.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, Tensor):
        bytes_ = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return {"tensor": hashlib.sha256(bytes_).hexdigest(), "shape": list(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, (list, tuple)):
        return [content(item, f"{where}.{position}") for position, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
        return {"dataclass": type(value).__qualname__, "fields": content(fields, where)}
    kind = type(value).__name__
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {"mapping": {key: content(item, f"{where}.{key}") for key, item in value.items()}}
        kind += " with a key that is no string"
    raise IdcError(
        f"{where} holds a {kind}, by which the cache of references cannot tell two examples apart; use tensors, "
        "numbers, strings, None, and lists, mappings or dataclasses of these"
    )


def read(key: str) -> Tensor | None:
    """An image (3, H, W), float32 in [0, 1]; None where it is not kept, or no longer as it was written."""
    kept = cache.read(CACHE / f"{key}.safetensors", load)
    return None if kept is None else kept["image"]


def keep(key: str, image: Tensor) -> None:
    """Write an image (3, H, W), whole or not at all."""
    cache.keep(CACHE / f"{key}.safetensors", {"image": image.contiguous()}, save)


def read_run(key: str) -> dict[str, Tensor] | None:
    """The run that an image was decoded from: samples and originals (steps, C, h, w), final (C, h, w); None where it is
    not kept, or no longer as it was written.
    """
    return cache.read(CACHE / f"{key}.run.safetensors", load)


def keep_run(key: str, run: Mapping[str, Tensor]) -> None:
    """Write such a run, whole or not at all."""
    cache.keep(CACHE / f"{key}.run.safetensors", {name: tensor.contiguous() for name, tensor in run.items()}, save)


def trim(limit_gb: float) -> None:
    """Let those go that were used longest ago, until the others fit."""
    cache.trim(CACHE, limit_gb)
