"""The Hugging Face hub and its cache; one clear line where neither has what is wanted."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlparse

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
