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
from ..errors import IdcError
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


def holds(key: str) -> bool:
    return (CACHE / f"{key}.safetensors").is_file()


def read(key: str) -> Tensor:
    """An image (3, H, W), float32 in [0, 1]."""
    return load_file(CACHE / f"{key}.safetensors")["image"]


def keep(key: str, image: Tensor) -> None:
    """Write an image (3, H, W), whole or not at all."""
    files.write_bytes(CACHE / f"{key}.safetensors", save({"image": image.contiguous()}))


def read_run(key: str) -> dict[str, Tensor] | None:
    """The run that an image was decoded from: samples and originals (steps, C, h, w), final (C, h, w); None if it was
    not kept.
    """
    path = CACHE / f"{key}.run.safetensors"
    return load_file(path) if path.is_file() else None


def keep_run(key: str, run: Mapping[str, Tensor]) -> None:
    """Write such a run, whole or not at all."""
    files.write_bytes(CACHE / f"{key}.run.safetensors", save({name: part.contiguous() for name, part in run.items()}))
