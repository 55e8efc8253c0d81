"""Photographs to search and evaluate on: a user's folder, or those that installed packages bring along.

No photograph serves both: every source has a search half and an evaluation half that share no file content.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts.files import file_digest
from ..errors import IdcError, did_you_mean
from .images import list_images, load_image

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("search", "evaluate")
# Package and path in it. In nobody's training set; the right-hand twin of motorcycle_left is left out, since both
# halves would share its scene.
_PACKAGED = {
    "search": (
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/rocket.jpg"),
        ("skimage", "data/motorcycle_left.png"),
        ("sklearn", "datasets/images/flower.jpg"),
    ),
    "evaluate": (
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/hubble_deep_field.jpg"),
        ("sklearn", "datasets/images/china.jpg"),
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ),
}
_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}
_METADATA = "metadata.jsonl"
_PROMPT_KEYS = ("prompt", "text", "caption")


@dataclass(frozen=True)
class Photograph:
    """A photograph on this machine.

    Attributes:
        name: unique in its source.
        path: the file.
        prompt: caption or instruction that came with it, "" if none did.
    """

    name: str
    path: Path
    prompt: str = ""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file's bytes."""
        return file_digest(self.path)

    def open(self) -> Image.Image:
        """The photograph as 8-bit RGB; raises IdcError for a bad file."""
        return load_image(self.path)


def packaged(split: str) -> list[Photograph]:
    """The public photographs inside scikit-image, scikit-learn and matplotlib; they are found, never fetched.

    Args:
        split: "search" (4 photographs) or "evaluate" (5 others).

    Raises:
        IdcError: a package lacks its file.
    """
    _check_split(split)
    return [Photograph(Path(file).stem, _inside(package, file)) for package, file in _PACKAGED[split]]


def _inside(package: str, file: str) -> Path:
    # find_spec of a top-level package imports nothing; importing these takes seconds.
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    wanted = f"the photograph {Path(file).name} of {_DISTRIBUTIONS[package]}"
    raise IdcError(
        f"{wanted} is not installed; install {_DISTRIBUTIONS[package]} or give photographs by data.path=FOLDER"
    )


def from_folder(path: str | Path) -> list[Photograph]:
    """The photographs in a folder and its subfolders, sorted by name.

    A `metadata.jsonl` in the folder (Hugging Face's imagefolder layout: an object per line with `file_name` and
    `prompt`, `text` or `caption`) gives prompts; photographs that it does not list have none.

    Raises:
        IdcError: no such folder, no image in it, or a line of the metadata that is wrong.
    """
    folder = Path(path).expanduser()
    files = list_images(folder)
    prompts = _read_metadata(folder)
    names = [file.relative_to(folder).with_suffix("").as_posix() for file in files]
    times = Counter(names)
    photographs = []
    for file, name in zip(files, names, strict=True):
        relative = file.relative_to(folder).as_posix()
        photographs.append(Photograph(name if times[name] == 1 else relative, file, prompts.get(relative, "")))
    return sorted(photographs, key=lambda photograph: photograph.name)


def _read_metadata(folder: Path) -> dict[str, str]:
    """File name, relative to the folder, to prompt."""
    path = folder / _METADATA
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise IdcError(f"{path} is not UTF-8 text; want one JSON object per line") from None
    prompts: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            name, prompt = _read_line(line, folder, f"{path}, line {number}")
            prompts[name] = prompt
    return prompts


def _read_line(line: str, folder: Path, place: str) -> tuple[str, str]:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise IdcError(f"{place} is not JSON ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise IdcError(f'{place} has no file_name; want {{"file_name": "photo.png", "prompt": "..."}}')
    if not (folder / row["file_name"]).is_file():
        raise IdcError(f"{place} names {row['file_name']}, and there is no such file in {folder}")
    key = next((key for key in _PROMPT_KEYS if key in row), None)
    prompt = "" if key is None else row[key]
    if not isinstance(prompt, str):
        raise IdcError(f"{place}: {key} must be a text, got {type(prompt).__name__}")
    return Path(row["file_name"]).as_posix(), prompt


def split(photographs: Sequence[Photograph], split: str) -> list[Photograph]:
    """The search or the evaluation half: even and odd places in order of name, one file of each content.

    Raises:
        IdcError: there are fewer than two different photographs.
    """
    _check_split(split)
    distinct: dict[str, Photograph] = {}
    for photograph in sorted(photographs, key=lambda photograph: photograph.name):
        distinct.setdefault(photograph.digest, photograph)
    if len(distinct) < len(SPLITS):
        raise IdcError(
            f"search and evaluation share no photograph, so they need at least 2 different ones; got {len(distinct)}; "
            "add photographs to data.path"
        )
    return list(distinct.values())[SPLITS.index(split) :: len(SPLITS)]


def without(photographs: Sequence[Photograph], digests: Collection[str]) -> list[Photograph]:
    """Those whose content is not among `digests` (SHA-256 of file bytes)."""
    return [photograph for photograph in photographs if photograph.digest not in digests]


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise IdcError(f"there is no split {split!r}{did_you_mean(split, SPLITS)}")
