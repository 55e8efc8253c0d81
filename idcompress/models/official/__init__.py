"""Architectures of the published models, so that sizes and costs need no network and no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from ...errors import IdcError

_FOLDER = Path(__file__).resolve().parent


def meta_components(task: str) -> dict[str, nn.Module]:
    """The networks of a task's published pipeline on the meta device: right shapes, no weights, no memory.

    Raises:
        IdcError: no architecture is stored for the task.
    """
    path = _FOLDER / f"{task}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.json")))
        raise IdcError(f"no published architecture is stored for task={task}; there are: {known}")
    components: dict[str, nn.Module] = {}
    with torch.device("meta"):
        for name, config in json.loads(path.read_text(encoding="utf-8")).items():
            components[name] = _build(dict(config))
    return components


def _build(config: dict[str, Any]) -> nn.Module:
    name = config.pop("_class_name")
    if name == "CLIPTextModel":
        model: nn.Module = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    else:
        model = getattr(diffusers, name).from_config(config)
    return model
