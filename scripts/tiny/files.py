"""What training leaves on disk: checkpoints that are whole or absent, notes, and a log with minutes."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint beside its place and rename it, so that an interrupted write leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint written by `save_checkpoint`; None when there is none."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state


def averaged(model: nn.Module, path: Path) -> nn.Module:
    """Load the averaged weights of a checkpoint, frozen."""
    state = load_checkpoint(path)
    if state is None:
        raise FileNotFoundError(f"no checkpoint {path}; run `{path.stem}` first")
    model.load_state_dict(state["ema"]["shadow"])
    return model.requires_grad_(False).eval()


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON with a trailing newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def hardware(device: torch.device) -> str:
    """One line for the model card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU thread(s) of {os.cpu_count()}, {platform.machine()}"


class Log:
    """Prints a line with the minutes since the start."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def __call__(self, text: str) -> None:
        print(f"[{(time.perf_counter() - self.start) / 60:6.1f} min] {text}", flush=True)
