"""Repositories of the hub: only what is loaded is fetched, wanted and digested, whoever filled the cache."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file

from idcompress.errors import IdcError
from idcompress.sources import folders, hub
from idcompress.sources.load import load_source

REPOSITORY, COMMIT = "a/pipeline", "1" * 40
LEFT_OUT = {
    "README.md": b"",
    "pruned.safetensors": b"not for diffusers",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
    "unet/diffusion_pytorch_model.non_ema.safetensors": b"other weights",
    "unet/diffusion_pytorch_model.bin": b"pickled",
    "safety_checker/config.json": b"{}",
    "safety_checker/model.safetensors": b"large",
    "feature_extractor/preprocessor_config.json": b"{}",
    "text_encoder/generation_config.json": b"{}",
}


@pytest.fixture
def whole(random_model, tmp_path):
    """A repository as it is published: a pipeline folder, with what is never loaded beside it."""
    folder = shutil.copytree(random_model("ip2p"), tmp_path / "whole")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    for name, data in LEFT_OUT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def put_into_cache(cache, source, chosen):
    """A cache of the hub's client with some files of a repository, links to blobs of any names."""
    place = cache / f"models--{REPOSITORY.replace('/', '--')}"
    (place / "blobs").mkdir(parents=True, exist_ok=True)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(COMMIT)
    for number, name in enumerate(chosen):
        link, blob = place / "snapshots" / COMMIT / name, place / "blobs" / f"{len(chosen):032d}{number:032d}"
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, blob)
        link.symlink_to(blob)
    return place / "snapshots" / COMMIT


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def wanted(whole):
    return sorted(set(names(whole)) - LEFT_OUT.keys())


def test_only_what_is_loaded_is_fetched(whole, cache, monkeypatch):
    fetched = []

    def snapshot(repository, *, revision, allow_patterns):
        fetched.extend(allow_patterns)
        return str(put_into_cache(cache, whole, allow_patterns))

    class Hub:
        def list_repo_files(self, repository, revision):
            return names(whole)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name, revision: str(whole / name))
    monkeypatch.setattr(hub, "check", lambda repository, revision: None)
    assert names(hub.resolve(REPOSITORY, "main")) == fetched == wanted(whole)
    fetched.clear()
    assert hub.resolve(REPOSITORY, "main").name == COMMIT and fetched == []  # the cache has it now


def test_one_digest_whoever_copied_the_files(whole, cache, random_model, tmp_path):
    """All of it, what diffusers takes, what we take, and the folder as it was saved."""
    digest = folders.folder_digest([random_model("ip2p")])
    assert folders.folder_digest([whole]) == digest
    for number, chosen in enumerate((names(whole), wanted(whole))):
        assert folders.folder_digest([put_into_cache(cache / str(number), whole, chosen)]) == digest
    weights = whole / "unet" / "diffusion_pytorch_model.safetensors"
    changed = {name: value + 1 for name, value in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    assert folders.folder_digest([whole]) != digest


def test_a_part_of_a_repository_in_the_cache_is_told(whole, cache):
    put_into_cache(cache, whole, [name for name in wanted(whole) if not name.startswith("vae/")])
    for look in (hub.check, hub.resolve):
        with pytest.raises(IdcError, match=r"holds a part of them \(.*vae/.*\), and HF_HUB_OFFLINE is set"):
            look(REPOSITORY, "main")


def test_the_weights_of_a_network_alone_are_wanted_too(random_model):
    """As of a control branch, whose repository has them at its root."""
    listed = ["README.md", "config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"]
    assert folders.loaded_files(listed, None, Path()) == listed[1:3]
    branch = random_model("controlnet") / "controlnet"
    assert folders.folder_digest([branch]) != folders.folder_digest([branch.parent / "unet"])


def test_shards_come_with_their_index():
    listed = ["config.json", *(f"model-0000{i}-of-00002.safetensors" for i in (1, 2)), "model.safetensors.index.json"]
    assert folders.loaded_files(listed, None, Path()) == sorted(listed)
    assert folders.loaded_files([*listed, "model.safetensors"], None, Path()) == ["config.json", "model.safetensors"]


def test_recipes_of_before_know_their_model_again(whole):
    """Their digest counted all files of the folder's folders."""
    source = {"name": "random", "path": str(whole)}
    former, now = folders.former_folder_digest([whole]), folders.folder_digest([whole])
    assert former != now
    assert load_source("ip2p", {**source, "digest": former}).digest == now
    with pytest.raises(IdcError, match="not those that the recipe was made for"):
        load_source("ip2p", {**source, "digest": "0" * 64})
