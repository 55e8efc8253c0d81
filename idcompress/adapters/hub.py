"""Where weights come from: a folder, the hub's cache, the hub; and one clear line when none of them has them."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from ..artifacts import files
from ..artifacts.recipe import Recipe
from ..errors import IdcError


def resolve(repository: str, revision: str) -> Path:
    """The local snapshot of a hub repository, fetched if the hub can be reached.

    Raises:
        IdcError: it is in no cache and cannot be fetched; at once, without the library's retries.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "README.md", "**/*.json", "**/*.txt", "**/*.safetensors"]
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        pass
    host = urlparse(constants.ENDPOINT).hostname or ""
    wanted = (
        f"the weights of {repository} (revision {revision}) are not in the hub cache ({constants.HF_HUB_CACHE}) and "
        f"%s; fetch them where there is a network with `hf download {repository}` and copy the cache, or give a "
        "diffusers folder by model.path="
    )
    if constants.HF_HUB_OFFLINE:
        raise IdcError(wanted % "HF_HUB_OFFLINE is set")
    if not any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        try:
            socket.create_connection((host, 443), timeout=5).close()
        except OSError:
            raise IdcError(wanted % "the hub cannot be reached") from None
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise IdcError(wanted % f"the hub refused them ({type(error).__name__})") from None


def push(folder: Path, repository: str) -> str:
    """Upload a folder to a hub repository, which is made if need be, with the hub's own client and log-in.

    Returns:
        The address of the upload.

    Raises:
        IdcError: not logged in, no such name, no network.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=repository))
    except Exception as error:  # the client's errors of connections have no common name; the folder is safe in any case
        raise IdcError(
            f"export.push_to={repository}: the hub did not take it ({type(error).__name__}); {folder} is complete, "
            f"`hf auth login` and `hf upload {repository} {folder}` upload it later"
        ) from None


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
        if name in ("unet", "vae", "text_encoder", "controlnet", "structure_encoder"):
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
                f"{folder / name} {what}: it is not as {folder / 'recipe.json'} says; copy or export the folder again"
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
