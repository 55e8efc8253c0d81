"""Architectures of the published models, so that sizes and costs need no network and no weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from ...errors import IdcError
from .. import stablesr
from ..stablesr import convert

_FOLDER = Path(__file__).resolve().parent


def meta_components(task: str) -> dict[str, nn.Module]:
    """The networks of a task's published pipeline on the meta device: right shapes, no weights, no memory.

    Raises:
        IdcError: no architecture is stored for the task.
    """
    return random_components(task, "meta")


def random_components(task: str, device: str) -> dict[str, nn.Module]:
    """The same on a device, with random weights: for costs, which do not depend on them.

    StableSR's come without a text tower: its prompt is always empty, and its embedding is stored.
    """
    with torch.device(device):
        if task == "stablesr":
            components: dict[str, nn.Module] = {
                "unet": stablesr.StableSRUNet2DConditionModel(**convert.unet_config(stablesr.PUBLISHED_CONFIG)),
                "structure_encoder": stablesr.StableSRStructureEncoder(
                    **convert.structure_encoder_config(stablesr.PUBLISHED_CONFIG)
                ),
                "vae": stablesr.StableSRAutoencoderKL(**convert.autoencoder_config(stablesr.PUBLISHED_CONFIG)),
            }
        else:
            components = {name: build(config) for name, config in architectures(task).items()}
    for component in components.values():
        component.eval().requires_grad_(False)
    return components


def published_networks(task: str, device: str = "meta", dtype: torch.dtype = torch.float32) -> Any:
    """The networks of a published pipeline without its weights, reached as those of a loaded one are.

    Args:
        device: "meta" gives shapes alone; any other gives random weights.
    """
    components = meta_components(task) if device == "meta" else random_components(task, device)
    for component in components.values():
        nn.Module.to(component, dtype)
    return SimpleNamespace(components=components, **components)


def architectures(task: str) -> dict[str, dict[str, Any]]:
    """The configurations of a published pipeline's networks, by component; StableSR's are made by its converter.

    Raises:
        IdcError: no architecture is stored for the task.
    """
    path = _FOLDER / f"{task}.json"
    if not path.is_file():
        known = ", ".join(sorted(["stablesr", *(p.stem for p in _FOLDER.glob("*.json"))]))
        raise IdcError(f"no published architecture is stored for task={task}; there are: {known}")
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def build(config: dict[str, Any]) -> nn.Module:
    """A network by its configuration, on torch's current device."""
    name, config = config["_class_name"], {key: value for key, value in config.items() if key != "_class_name"}
    if name == "CLIPTextModel":
        model: nn.Module = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    else:
        model = getattr(diffusers, name).from_config(config)
    return model
