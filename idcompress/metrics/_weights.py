"""The weight files of metrics: a path, the folder IDC_WEIGHTS, or a cache on this machine; never a network.

A file is the real one or it is refused: by the SHA-256 prefix in its published name, or by the digest of its tensors.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import IdcError


def find_weights(
    names: tuple[str, ...],
    *,
    path: str = "",
    repository: str = "",
    folder_file: str = "",
    source: str,
    metric: str,
    key: str = "weights",
) -> Path:
    """Look for a weight file where it may be, in this order: `path`, IDC_WEIGHTS, torch hub's cache, the hub's cache.

    Args:
        names: file names that it goes by; the first is the published one. Below IDC_WEIGHTS they may lie one folder
            down.
        path: a file, or a folder that holds one of `names`; nothing else is looked at then.
        repository: where on the Hugging Face hub it is published, "" if it is not.
        folder_file: its name in that repository.
        source: where to get it.
        metric: whose weights these are.
        key: of its configuration that gives `path`.

    Raises:
        IdcError: it is nowhere; at once.
    """
    ways = f"give it by IDC_WEIGHTS=FOLDER or by metrics.{metric}.{key}=FILE"
    if path:
        given = Path(path).expanduser()
        found = next((given / name for name in names if (given / name).is_file()), given)
        if not found.is_file():
            what = f"holds no {' or '.join(names)}" if given.is_dir() else "does not exist"
            raise IdcError(f"{metric}: {key}={path} {what}; want {names[0]} from {source}")
        return found
    places: list[Path] = []
    if os.environ.get("IDC_WEIGHTS"):
        folder = Path(os.environ["IDC_WEIGHTS"]).expanduser()
        if not folder.is_dir():
            raise IdcError(f"{metric}: IDC_WEIGHTS={folder} is no folder; want one that holds {names[0]}")
        places += [p for name in names for p in (folder / name, *sorted(folder.glob(f"*/{name}")))]
    places += [Path(torch.hub.get_dir()) / "checkpoints" / name for name in names]
    if repository:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(repository, folder_file)
        places += [Path(cached)] if isinstance(cached, str) else []
    for place in places:
        if place.is_file():
            return place
    raise IdcError(f"{metric} needs {names[0]}, which is not on this machine; get it from {source} and {ways}")


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pth file that holds nothing else, on the CPU."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise IdcError(f"{path} is not a whole safetensors file ({error}); copy or fetch it again") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is cut short, an archive of code, or a text
        reason = str(error).split("\n")[0][:100]
        raise IdcError(f"{path} holds no plain tensors ({reason}); want an unchanged published file") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise IdcError(f"{path} holds no dictionary of tensors; want an unchanged published file")
    return state


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values, whatever file they lie in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
