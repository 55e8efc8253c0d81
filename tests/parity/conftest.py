"""The official depth-skip U-Nets, rebuilt from their integer codes in diffusers names."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file


def _build(cls: Any, folder: Path, config: str, weights: str, keymap: str, reader: Any) -> Any:
    model = cls.from_config(json.loads((folder / config).read_text())).eval()
    state = reader.load_diffusers(folder, weights, keymap)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def depth_skip_fixtures(shared: Path) -> SimpleNamespace:
    folder = shared / "fixtures" / "depth_skip"
    spec = importlib.util.spec_from_file_location("fixture_io", folder / "fixture_io.py")
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    return SimpleNamespace(folder=folder, reader=reader)


@pytest.fixture(scope="session")
def official_ip2p(depth_skip_fixtures: SimpleNamespace) -> SimpleNamespace:
    folder = depth_skip_fixtures.folder / "ip2p"
    unet = _build(
        UNet2DConditionModel, folder, "unet_config.json", "weights", "keymap.json", depth_skip_fixtures.reader
    )
    return SimpleNamespace(
        unet=unet,
        inputs=load_file(folder / "inputs.safetensors"),
        outputs=load_file(folder / "outputs.safetensors"),
        trajectory=load_file(folder / "trajectory.safetensors"),
        settings=json.loads((folder / "trajectory.json").read_text()),
    )


@pytest.fixture(scope="session")
def official_controlnet(depth_skip_fixtures: SimpleNamespace) -> SimpleNamespace:
    folder, reader = depth_skip_fixtures.folder / "controlnet", depth_skip_fixtures.reader
    return SimpleNamespace(
        unet=_build(UNet2DConditionModel, folder, "unet_config.json", "weights_unet", "keymap_unet.json", reader),
        branch=_build(
            ControlNetModel, folder, "controlnet_config.json", "weights_control", "keymap_control.json", reader
        ),
        inputs=load_file(folder / "inputs.safetensors"),
        outputs=load_file(folder / "outputs.safetensors"),
        residuals=load_file(folder / "control_residuals.safetensors"),
    )
