"""The Hugging Face hub and its cache; one clear line where neither has what is wanted."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlparse

from ..errors import IdcError
from ..runs import files
from . import folders

# For the hub's command line: without the twins in half precision, pickled weights and what is never loaded.
ONLY_WHAT_IS_LOADED = "--include '*.json' '*.txt' '*model.safetensors' --exclude 'safety_checker/*'"


def resolve(repository: str, revision: str) -> Path:
    """The local snapshot of a hub repository; what is loaded of it is fetched if it is not there.

    Raises:
        IdcError: it is in no cache and cannot be fetched; at once, without the library's retries.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    folder, lacks = _cached(repository, revision)
    if folder is not None:
        return folder
    check(repository, revision)
    try:
        wanted = _wanted(repository, revision)
        fetched = Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise _absent(repository, revision, lacks, f"the hub refused them ({type(error).__name__})") from None
    folders.check_place(fetched)
    return fetched


def check(repository: str, revision: str) -> None:
    """Raise IdcError where a hub repository is neither in the cache nor within reach; nothing is fetched."""
    from huggingface_hub import constants

    folder, lacks = _cached(repository, revision)
    if folder is not None:
        return
    if constants.HF_HUB_OFFLINE:
        raise _absent(repository, revision, lacks, "HF_HUB_OFFLINE is set")
    if not any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        try:
            socket.create_connection((urlparse(constants.ENDPOINT).hostname or "", 443), timeout=5).close()
        except OSError:
            raise _absent(repository, revision, lacks, "the hub cannot be reached") from None


def _cached(repository: str, revision: str) -> tuple[Path | None, str]:
    """The snapshot in the cache, whoever fetched it, if all that is loaded is there; else None, and what it lacks."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("model_index.json", "config.json"):
        found = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(found, str):
            try:
                folders.check_place(Path(found).parent)
            except IdcError as error:
                return None, str(error)
            return Path(found).parent, ""
    return None, ""


def _wanted(repository: str, revision: str) -> list[str]:
    """The files of a repository that are loaded, by its listing and its model_index.json, which is fetched."""
    from huggingface_hub import HfApi, hf_hub_download

    listed, index = HfApi().list_repo_files(repository, revision=revision), None
    if "model_index.json" in listed:
        index = files.read_json(Path(hf_hub_download(repository, "model_index.json", revision=revision)), "model")
    return folders.loaded_files(listed, index, Path(repository))


def _absent(repository: str, revision: str, lacks: str, why: str) -> IdcError:
    from huggingface_hub import constants

    part = f", which holds a part of them ({lacks})," if lacks else ""
    return IdcError(
        f"the weights of {repository} (revision {revision}) are not in the hub cache ({constants.HF_HUB_CACHE}){part} "
        f"and {why}; fetch them where there is a network with `hf download {repository} {ONLY_WHAT_IS_LOADED}` and "
        "copy the cache, or give a diffusers folder by model.path="
    )


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
