"""Results that others are compared with, computed once per (weights, cut, plan, example, seed) and kept lossless."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..console import warn
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
    kept = _read(CACHE / f"{key}.safetensors")
    return None if kept is None else kept["image"]


def keep(key: str, image: Tensor) -> None:
    """Write an image (3, H, W), whole or not at all."""
    _keep(CACHE / f"{key}.safetensors", {"image": image})


def read_run(key: str) -> dict[str, Tensor] | None:
    """The run that an image was decoded from: samples and originals (steps, C, h, w), final (C, h, w); None where it is
    not kept, or no longer as it was written.
    """
    return _read(CACHE / f"{key}.run.safetensors")


def keep_run(key: str, run: Mapping[str, Tensor]) -> None:
    """Write such a run, whole or not at all."""
    _keep(CACHE / f"{key}.run.safetensors", run)


def trim(limit_gb: float) -> None:
    """Let those go that were used longest ago, until the others fit."""
    cache.trim(CACHE, limit_gb)


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        with safe_open(path, "pt") as file:
            wanted: str | None = (file.metadata() or {}).get("sha256")
            kept: dict[str, Tensor] | None = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError):
        wanted, kept = "", None
    if kept is not None and wanted is None:  # of a version that noted no digest
        return None
    if kept is None or _digest(kept) != wanted:
        warn(f"the kept reference {path} is damaged; it is computed again")
        return None
    with suppress(OSError):
        os.utime(path)  # the last use, by which the cache is trimmed
    return kept


def _keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """It does not wait for the disk: what a loss of power leaves does not fit its digest, and is computed again."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    files.write_bytes(path, save(whole, {"sha256": _digest(whole)}), durable=False)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
