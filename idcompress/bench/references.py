"""Results that others are compared with, computed once per (weights, cut, plan, example, seed) and kept lossless."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..core.plan import Plan
from ..runs import files
from ..runs.recipe import Recipe
from ..runs.run_dir import OUTPUTS
from ..types import Example

if TYPE_CHECKING:
    from .bench import Bench

CACHE = OUTPUTS / "cache" / "references"


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


def content(value: Any) -> Any:
    """A value as JSON with digests in the place of tensors; of a dataclass every field, so that a new one counts too.

    Raises:
        TypeError: a value of a kind whose content is not known here.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        digest = hashlib.sha256(plain.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        return {"shape": list(plain.shape), "dtype": str(plain.dtype), "sha256": digest}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: content(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): content(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [content(entry) for entry in value]
    raise TypeError(f"a cached result cannot depend on a {type(value).__name__}; teach bench/references.py its content")


def holds(key: str) -> bool:
    return (CACHE / f"{key}.safetensors").is_file()


def read(key: str) -> Tensor:
    """An image (3, H, W), float32 in [0, 1]."""
    return load_file(CACHE / f"{key}.safetensors")["image"]


def keep(key: str, image: Tensor) -> None:
    """Write an image (3, H, W), whole or not at all."""
    files.write_bytes(CACHE / f"{key}.safetensors", save({"image": image.contiguous()}))
