"""Pipeline folders looked over before anything is loaded from them, and their digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import IdcError
from ..runs import files
from ..runs.recipe import Recipe

# Components without weights, by what their classes are called.
_NO_MODELS = ("Scheduler", "Tokenizer", "Processor", "FeatureExtractor")
# Components of diffusers' pipelines that are not loaded.
LEFT_OUT = ("safety_checker", "feature_extractor")


def check_folder(folder: Path) -> dict[str, Any]:
    """Look a diffusers pipeline folder over before anything is loaded from it.

    Returns:
        Its model_index.json.

    Raises:
        IdcError: naming the file that is missing or cut short.
    """
    if not folder.is_dir():
        raise IdcError(f"model.path={folder} is no folder; want a diffusers pipeline folder (with model_index.json)")
    if (folder / "unet.onnx").is_file():
        raise IdcError(f"{folder} holds ONNX graphs; its README.md runs them, and idcompress wants their recipe=FILE")
    if not (folder / "model_index.json").is_file():
        raise IdcError(f"{folder} has no model_index.json; want a diffusers pipeline folder, made by save_pretrained")
    index = files.read_json(folder / "model_index.json", "model")
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or entry[0] is None:
            continue
        component = folder / name
        if not component.is_dir():
            raise IdcError(f"{folder} is incomplete: the folder {name}/ that model_index.json names is missing")
        if name not in LEFT_OUT and not any(word in entry[1] for word in _NO_MODELS):
            _check_component(component)
    exported = Recipe.of_folder(folder)
    if exported is not None:
        _check_digests(folder, exported.provenance[-1]["files"])
    return index


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all that decides what an exported folder loads as: weights, graphs, configurations, tokenizers."""
    suffixes = (".safetensors", ".onnx", ".data", ".json", ".txt")
    return {
        str(path.relative_to(folder)): files.file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in suffixes and path.is_file() and path != folder / "recipe.json"
    }


def _check_digests(folder: Path, wanted: dict[str, str]) -> None:
    found = file_digests(folder)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            what = "was not exported" if name not in wanted else "is missing" if name not in found else "was changed"
            raise IdcError(
                f"{folder / name} {what} since {folder / 'recipe.json'} was written; copy or export the folder again"
            )


def _check_component(component: Path) -> None:
    if not (component / "config.json").is_file():
        raise IdcError(f"{component.parent} is incomplete: {component.name}/config.json is missing")
    files.read_json(component / "config.json", "model")
    weights = sorted(component.glob("*.safetensors"))
    if not weights:
        found = ", ".join(sorted(p.name for p in component.iterdir())) or "nothing"
        raise IdcError(f"{component} holds no .safetensors weights (found {found}); pickled weights are not loaded")
    for path in weights:
        check_safetensors(path)


def check_safetensors(path: Path) -> None:
    """Raise IdcError if a safetensors file is cut short or no safetensors file at all."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 0 < length <= min(size, 100_000_000) else None
        if header is None:
            raise ValueError("no header")
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        raise IdcError(f"{path} is not a whole safetensors file; copy or fetch it again") from None
    if size != 8 + length + end:
        raise IdcError(f"{path} is cut short: {size} bytes, want {8 + length + end}; copy or fetch it again")


def folder_digest(folders: list[Path]) -> str:
    """One SHA-256 over the weights and configurations below some pipeline folders."""
    digests = {}
    for number, folder in enumerate(folders):
        for path in sorted(folder.rglob("*")):
            is_data = path.suffix in (".safetensors", ".json", ".txt") and path.parent != folder
            if path.is_file() and is_data:
                digests[f"{number}/{path.relative_to(folder)}"] = files.file_digest(path)
    return files.digest(digests)
