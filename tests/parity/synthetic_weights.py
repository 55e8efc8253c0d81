"""Weights of the StableSR parity facts: a function of seed, name and shape, so that they need not be stored.

Element i of a tensor is drawn by the SplitMix64 generator from the first eight bytes of SHA-256("seed|name"), as a
number on a grid of 2^24 in [-1, 1). Matrices are scaled to unit output variance, norm weights lie about 1, biases
about 0.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch


def _uniform(seed: int, name: str, number: int) -> np.ndarray:
    """(number,) float64 in [-1, 1)."""
    start = int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:8], "little")
    bits = np.arange(1, number + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return (bits >> np.uint64(40)).astype(np.float64) / 2**23 - 1


def weight(seed: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of the checkpoint, float32."""
    values = _uniform(seed, name, int(np.prod(shape)))
    if len(shape) > 1:
        values *= np.sqrt(3 / np.prod(shape[1:]))
    else:
        values = 1 + 0.25 * values if name.endswith("weight") else 0.1 * values
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def state_dict(index: Path, which: str) -> dict[str, torch.Tensor]:
    """The weights that an index lists under `which`; names with an alias share the alias's values."""
    listed = json.loads(index.read_text())
    alias = listed["alias"]
    return {name: weight(listed["seed"], alias.get(name, name), tuple(shape)) for name, shape in listed[which]}


def digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names and values in order of name."""
    found = hashlib.sha256()
    for name, values in sorted(state.items()):
        found.update(name.encode() + b"\0" + values.numpy().tobytes())
    return found.hexdigest()


def save_checkpoint(index: Path, which: str, path: Path) -> str:
    """Write a checkpoint laid out as the published ones, with keys that a loader must ignore; its weights' digest."""
    state = state_dict(index, which)
    found = digest(state)
    if which == "main":
        buffers = json.loads(index.read_text())["schedule_buffers_in_original_main_checkpoint"]
        state |= {name: torch.zeros(1000) for name in buffers}
    else:
        state |= {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(64, 3, 4, 4)}
    torch.save({"state_dict": state, "global_step": 0, "epoch": 0}, path)
    return found
