"""A recipe's weights go into copies of what its cut has left alone, whatever the method has replaced."""

import copy
import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from idcompress import Recipe
from idcompress.core.cut import Cut
from idcompress.runs.files import file_digest
from idcompress.sources.load import load_source


def apply(components, cut):
    """Replace the one component that the cut names, by a changed copy."""
    changed = copy.deepcopy(components[cut.choice["component"]])
    for parameter in changed.parameters():
        parameter.data *= 0.5
    return {cut.choice["component"]: changed}


@pytest.fixture
def model(register, random_model):
    register("prune", "toy", candidates=lambda components, request: [Cut("toy")], apply=apply)
    source = {"name": "random", "path": str(random_model("controlnet"))}
    return load_source("controlnet", source, device="cpu", dtype="float32", prune="toy")


def states(pipeline):
    return {name: copy.deepcopy(getattr(pipeline, name).state_dict()) for name in ("unet", "controlnet", "vae")}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def tuned_of(folder, pipeline, *names):
    """Weights as fine-tuning leaves them."""
    weights = {}
    for name in names:
        path = folder / f"{name}.safetensors"
        save_file(
            {key: (value + 0.25).contiguous() for key, value in getattr(pipeline, name).state_dict().items()}, path
        )
        weights[name] = {"file": path.name, "sha256": file_digest(path)}
    return weights


@pytest.mark.parametrize("component", ["unet", "controlnet"])
def test_a_component_that_a_cut_leaves_alone_is_not_written_over(model, tmp_path, component):
    """The cut replaces one component, fine-tuning trained both; the full model stays as it was loaded."""
    before, cut = states(model.pipeline), Cut("toy", {"component": component})
    weights = tuned_of(tmp_path, model.at(cut), "unet", "controlnet")
    recipe = Recipe("controlnet", model.source, cut, weights, folder=tmp_path)
    made = model.for_recipe(recipe)
    for name in ("unet", "controlnet"):
        wanted = {key: value + 0.25 for key, value in model.at(cut).components[name].state_dict().items()}
        assert same(getattr(made, name).state_dict(), wanted)
        assert same(getattr(model.pipeline, name).state_dict(), before[name])
    assert made.vae is model.pipeline.vae  # what is neither cut nor trained is shared
    assert same(model.pipeline.vae.state_dict(), before["vae"])


def test_weights_without_a_cut_leave_the_full_model_alone(model, tmp_path):
    before = states(model.pipeline)
    recipe = Recipe("controlnet", model.source, None, tuned_of(tmp_path, model.pipeline, "unet"), folder=tmp_path)
    made = model.for_recipe(recipe)
    assert same(model.pipeline.unet.state_dict(), before["unet"])
    assert not same(made.unet.state_dict(), before["unet"])
    assert made.controlnet is model.pipeline.controlnet


def test_a_depth_that_cuts_nothing_leaves_the_full_model_alone(model, tmp_path):
    before, cut = states(model.pipeline), Cut("depth_skip", {"depth": 13})
    assert model.at(cut) is model.pipeline and model.is_whole(cut)
    recipe = Recipe("controlnet", model.source, cut, tuned_of(tmp_path, model.pipeline, "controlnet"), folder=tmp_path)
    assert not same(model.for_recipe(recipe).controlnet.state_dict(), before["controlnet"])
    assert same(model.pipeline.controlnet.state_dict(), before["controlnet"])


def test_a_recipe_is_cut_by_the_method_that_it_names(model):
    """Not by the one that new cuts would be made by."""
    recipe = Recipe("controlnet", model.source, Cut("depth_skip", {"depth": 9}))
    assert model.for_recipe(recipe).unet.config.depth == 9
    assert (
        dataclasses.replace(model, prune="depth_skip").words(recipe.cut) == "depth 9 of 13" == model.words(recipe.cut)
    )
