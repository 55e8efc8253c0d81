"""Pipeline folders, and components that come from a place of their own."""

import json

import diffusers
import pytest

from idcompress.errors import IdcError
from idcompress.sources import hub
from idcompress.sources.load import load_source


def source(**repositories):
    return {"name": "official", "path": None, "repositories": repositories, "revision": None}


@pytest.fixture
def places(random_model, tmp_path, monkeypatch):
    """A text-to-image folder and its control branch apart, found as two repositories; returns the branch's weights."""
    whole, base, branch = random_model("controlnet"), tmp_path / "base", tmp_path / "branch"
    base.mkdir()
    for part in whole.iterdir():
        (branch if part.name == "controlnet" else base / part.name).symlink_to(part)
    index = json.loads((whole / "model_index.json").read_text())
    del index["controlnet"]
    (base / "model_index.json").unlink()
    (base / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPipeline"}))
    monkeypatch.setattr(hub, "resolve", lambda repository, revision: {"a/base": base, "a/branch": branch}[repository])
    return load_source("controlnet", {"name": "random", "path": str(whole)}).pipeline.controlnet.state_dict()


def test_a_component_of_its_own_place_has_the_class_that_its_task_names(places):
    pipeline = load_source("controlnet", source(pipeline="a/base", controlnet="a/branch")).pipeline
    assert type(pipeline) is diffusers.StableDiffusionControlNetPipeline
    assert type(pipeline.controlnet) is diffusers.ControlNetModel
    assert all((places[name] == value).all() for name, value in pipeline.controlnet.state_dict().items())


def test_a_component_that_the_task_does_not_know_is_an_error(places):
    with pytest.raises(IdcError, match=r"task=ip2p takes pipeline from there, got controlnet"):
        load_source("ip2p", source(pipeline="a/base", controlnet="a/branch"))


@pytest.mark.parametrize("name", ["structure_encoder", "prompt_embedding"])
def test_every_model_of_the_index_is_checked(name, random_model, tmp_path):
    """A file that is cut short is named, whatever component it is of."""
    for part in random_model("stablesr").rglob("*"):
        if part.is_file():
            copy = tmp_path / part.relative_to(random_model("stablesr"))
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(part.read_bytes()[: -1 if part.parent.name == name and ".safe" in part.name else None])
    with pytest.raises(IdcError, match=rf"{name}/.*\.safetensors is cut short"):
        load_source("stablesr", {"name": "random", "path": str(tmp_path)})
