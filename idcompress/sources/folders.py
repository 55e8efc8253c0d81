"""Pipeline folders looked over before anything is loaded from them, and their digests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import IdcError
from ..runs import files
from ..runs.recipe import Recipe

# Components without weights, by what their classes are called.
_NO_MODELS = ("Scheduler", "Tokenizer", "Processor", "FeatureExtractor")
# Components of diffusers' pipelines that are not loaded, so that their folders need not be there.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
# A file of weights: model.safetensors or diffusion_pytorch_model.safetensors, of a variant or one shard of several.
_WEIGHTS = re.compile(
    r"(?P<base>model|diffusion_pytorch_model)(\.(?P<variant>[\w-]+?))?(?P<shard>-\d{5}-of-\d{5})?"
    r"(\.(?P<old_variant>\w+))?\.safetensors"
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_VARIANTS = ("", "fp16", "bf16", "ema", "non_ema")  # the first that is there is loaded


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
    for name, (_, class_name) in components_of(index, folder).items():
        component = folder / name
        if not component.is_dir():
            raise IdcError(f"{folder} is incomplete: the folder {name}/ that model_index.json names is missing")
        if has_weights(class_name):
            variant_of(component)
    exported = Recipe.of_folder(folder)
    if exported is not None:
        _check_digests(folder, exported.provenance[-1]["files"])
    return index


def class_name_of(index: dict[str, Any]) -> str:
    """The pipeline's class by its model_index.json: a name, or [file, name] where the folder brings the class."""
    named = index.get("_class_name")
    return str(named[-1] if isinstance(named, list) and named else named)


def check_place(folder: Path) -> dict[str, Any]:
    """Look over the folder of a pipeline, or of a network that comes from elsewhere.

    Returns:
        the pipeline's model_index.json, {} for a network.

    Raises:
        IdcError: naming the file that is missing or cut short.
    """
    if (folder / "model_index.json").is_file() or not (folder / "config.json").is_file():
        return check_folder(folder)
    variant_of(folder)
    return {}


def components_of(index: dict[str, Any], folder: Path) -> dict[str, tuple[str, str]]:
    """The components that are loaded of a pipeline folder: name -> (library, class).

    Raises:
        IdcError: model_index.json does not name a component as diffusers does.
    """
    found = {}
    for name, entry in index.items():
        if name.startswith("_") or name in LEFT_OUT or not isinstance(entry, list) or entry[:1] == [None]:
            continue
        if len(entry) != 2 or not all(isinstance(word, str) for word in entry):
            raise IdcError(f"{folder / 'model_index.json'}: {name} must be [library, class], got {entry!r}")
        found[name] = (entry[0], entry[1])
    return found


def has_weights(class_name: str) -> bool:
    """Whether components of a class are networks."""
    return not any(word in class_name for word in _NO_MODELS)


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all that decides what an exported folder loads as: weights, graphs, code and settings."""
    suffixes = (".safetensors", ".onnx", ".data", ".json", ".txt", ".py")
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


def variant_of(component: Path) -> str | None:
    """The variant whose files are loaded of a network's folder: None for the plain ones, else "fp16", for example.

    Raises:
        IdcError: there are no weights, or a file is missing, cut short or no safetensors file.
    """
    if not (component / "config.json").is_file():
        raise IdcError(f"{component.parent} is incomplete: {component.name}/config.json is missing")
    files.read_json(component / "config.json", "model", infinite=True)
    listed = [path.name for path in component.iterdir()]
    variant, weights = _weights_of(listed)
    if variant is None:
        found = ", ".join(sorted(listed)) or "nothing"
        raise IdcError(
            f"{component} holds no .safetensors weights (found {found}); want diffusers' names, model.safetensors or "
            "diffusion_pytorch_model.safetensors, and pickled weights are not loaded"
        )
    for name in _shards_of(component, variant, weights) or weights:
        check_safetensors(component / name)
    return variant or None


def stored_dtypes(component: Path) -> set[str]:
    """The dtypes of the weights that are loaded of a network's folder, as safetensors spells them: {"F16"}."""
    variant = variant_of(component) or ""
    names = ((path, _WEIGHTS.fullmatch(path.name)) for path in component.glob("*.safetensors"))
    found: set[str] = set()
    for path, name in names:
        if name is not None and (name["variant"] or name["old_variant"] or "") == variant:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            found |= {entry["dtype"] for key, entry in header.items() if key != "__metadata__"}
    return found


def _weights_of(names: Iterable[str]) -> tuple[str | None, list[str]]:
    """Of the files of a network's folder, the variant that is loaded, and its weights; None where there are none.

    The plain files go before the variants, whatever the wanted dtype: a half of them is as good as one on disk. A whole
    file goes before shards.
    """
    variants: dict[str, list[str]] = {}
    for name in sorted(names):
        found = _WEIGHTS.fullmatch(name)
        if found is not None:
            variants.setdefault(found["variant"] or found["old_variant"] or "", []).append(name)
    known = [variant for variant in _VARIANTS if variant in variants] or sorted(variants)
    if not known:
        return None, []
    chosen = variants[known[0]]
    whole = [name for name in chosen if not _SHARD.search(name)]
    return known[0], whole or chosen


def _shards_of(component: Path, variant: str, weights: list[str]) -> list[str]:
    """The shards of a network that comes in several; [] where it does not.

    Raises:
        IdcError: the index of the shards is missing, or a shard that it names.
    """
    if not _SHARD.search(weights[0]):
        return []
    names = [path.name for path in component.iterdir() if _is_index(path.name, variant)]
    if not names:
        ending = f".safetensors.index{f'.{variant}' if variant else ''}.json"
        raise IdcError(f"{component} holds shards of weights without their index, *{ending}; copy or fetch it again")
    listed = files.read_json(component / names[0], "model").get("weight_map")
    shards = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    for name in shards:
        if not (component / name).is_file():
            raise IdcError(f"{component} is incomplete: {name}, which {names[0]} names, is missing")
    return shards


def _is_index(name: str, variant: str) -> bool:
    return name.endswith(f".safetensors.index{f'.{variant}' if variant else ''}.json")


def loaded_files(names: Iterable[str], index: dict[str, Any] | None, where: Path) -> list[str]:
    """Of the files of a pipeline's or a network's repository those that are loaded, sorted.

    Args:
        names: of all its files, from its root on, with slashes.
        index: its model_index.json; None where it holds one network alone.
        where: it is, for errors.

    Raises:
        IdcError: see `components_of`.
    """
    inside: dict[str, list[str]] = {}
    for name in names:
        folder, _, base = name.rpartition("/")
        inside.setdefault(folder, []).append(base)
    parts = {"": ("", "Model")} if index is None else components_of(index, where)
    found = [] if index is None else ["model_index.json"]
    for part, (_, class_name) in parts.items():
        here = sorted(inside.get(part, ()))
        if has_weights(class_name):
            variant, chosen = _weights_of(here)
            if variant is not None and _SHARD.search(chosen[0]):
                chosen = [*chosen, *(name for name in here if _is_index(name, variant))]
            chosen = [*chosen, *({"config.json"} & {*here})]
        elif "Scheduler" in class_name:
            chosen = [name for name in here if name == "scheduler_config.json"]
        else:
            chosen = [name for name in here if name.endswith((".json", ".txt"))]
        found += [f"{part}/{name}" if part else name for name in chosen]
    return sorted(found)


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
    """One SHA-256 over what is loaded of some folders: pipelines, and networks that come from elsewhere.

    What else lies there does not count, so that a repository has one digest whether diffusers fetched it, the hub's
    client did, or somebody copied it.
    """
    digests = {}
    for number, folder in enumerate(folders):
        listed = [str(path.relative_to(folder)) for path in (*folder.glob("*"), *folder.glob("*/*"))]
        there = folder / "model_index.json"
        index = files.read_json(there, "model") if there.is_file() else None
        for name in loaded_files(listed, index, folder):
            if name != there.name:  # its other entries name what is never loaded
                digests[f"{number}/{name}"] = files.file_digest(folder / name)
    return files.digest(digests)


def former_folder_digest(folders: list[Path]) -> str:
    """What recipes named a model by before: a SHA-256 over all weights and configurations in its folders' folders."""
    digests = {}
    for number, folder in enumerate(folders):
        for path in sorted(folder.rglob("*")):
            is_data = path.suffix in (".safetensors", ".json", ".txt") and path.parent != folder
            if path.is_file() and is_data:
                digests[f"{number}/{path.relative_to(folder)}"] = files.file_digest(path)
    return files.digest(digests)
