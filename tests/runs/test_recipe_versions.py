"""Recipes of version 1, which held a depth and a list in place of a cut and a plan: they load, and sample as before."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from idcompress import gamma_timesteps, load_pipeline
from idcompress.bench.translate import translate
from idcompress.core.cut import Cut
from idcompress.core.plan import Plan
from idcompress.errors import IdcError
from idcompress.runs.files import file_digest
from idcompress.runs.recipe import VERSION, Recipe
from idcompress.sources.load import load_source
from idcompress.tasks.ip2p import Task
from idcompress.types import Example

LISTED, FREE = (Path(__file__).with_name(f"recipe_version_1{kind}.json") for kind in ("", "_free"))


def old(source=LISTED, **changes):
    """The JSON of a stored recipe, with other values."""
    return {**json.loads(source.read_text()), **changes}


@pytest.fixture
def load(tmp_path):
    """Load a recipe's JSON from a file of its own."""

    def load(value):
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(value))
        return Recipe.load(path)

    return load


# What they load to.


def test_depth_and_list_become_a_cut_and_a_plan():
    recipe, value = Recipe.load(LISTED), old()
    assert value["version"] == 1 and recipe.version == VERSION == 2
    assert recipe.cut == Cut("depth_skip", {"depth": 9})
    assert recipe.plan == Plan.over([999, 640, 640, 3], sampler="ancestral", guidance=value["guidance"])
    assert recipe.free_steps is False
    assert (recipe.depth, recipe.timesteps, recipe.num_inference_steps) == (9, (999, 640, 640, 3), 4)
    assert (recipe.sampler, recipe.guidance, recipe.stage) == ("ancestral", value["guidance"], "tsopt")
    for kept in ("task", "model", "weights", "parent"):
        assert getattr(recipe, kept) == value[kept]
    assert list(recipe.provenance) == value["provenance"]
    assert recipe.searched_photographs() == {"1" * 64, "2" * 64}
    assert not recipe.is_full
    assert recipe.folder == LISTED.parent


def test_free_steps_become_uniform_ones_that_may_be_others():
    recipe = Recipe.load(FREE)
    assert recipe.cut is None
    assert recipe.plan == Plan.over(gamma_timesteps(1.0, 4), guidance={"guidance_scale": 2})
    assert recipe.free_steps is True
    assert (recipe.depth, recipe.timesteps, recipe.num_inference_steps) == (None, None, 4)
    assert (recipe.sampler, recipe.stage) == ("ddim", "")
    assert recipe.is_full


def test_a_depth_without_a_list(load):
    recipe = load(old(timesteps=None, num_inference_steps=50, weights={}))
    assert recipe.cut == Cut("depth_skip", {"depth": 9})
    assert recipe.free_steps and recipe.plan.timesteps == tuple(gamma_timesteps(1.0, 50))


def test_a_list_without_a_depth(load):
    recipe = load(old(depth=None, weights={}, prune="none"))
    assert recipe.cut is None
    assert recipe.timesteps == (999, 640, 640, 3)


def test_old_recipes_that_do_not_name_a_sampler_are_ddims(load):
    value = old()
    del value["provenance"][-1]["sampler"]
    assert load(value).sampler == "ddim"


@pytest.mark.parametrize("source", [LISTED, FREE], ids=["listed", "free"])
def test_saved_again_they_are_of_this_version(source, tmp_path):
    recipe = Recipe.load(source)
    path = recipe.save(tmp_path / "recipe.json")
    value = json.loads(path.read_text())
    assert value["version"] == 2
    assert {"cut", "plan", "free_steps"} <= value.keys()
    assert not {"depth", "timesteps", "prune", "guidance", "num_inference_steps"} & value.keys()
    again = Recipe.load(path)
    assert again == recipe and again.digest == recipe.digest
    assert again.save(tmp_path / "again.json").read_bytes() == path.read_bytes()


# What is wrong with them.

DAMAGE = {
    "task": [None, 3, ["ip2p"]],
    "model": [None, "tiny", {}, {"path": "x"}, {"name": 3}],
    "prune": [None, 1],
    "depth": [0, -1, 9.0, "9", True],
    "timesteps": [[], [5, 6], [-1], [999, 3.5], [True], "999", {"a": 1}],
    "num_inference_steps": [None, "50", 2.5, True, 0, -3],
    "guidance": [None, [7.5], {"guidance_scale": "high"}, {"guidance_scale": None}, {"batch_size": 3}],
    "weights": [None, [], {"unet": "unet.safetensors"}, {"unet": {"file": "unet.safetensors"}}],
    "parent": [3, ["x"]],
    "provenance": [None, {}, ["depth_search"], [{"seed": 0}]],
}


def the_line(load, value):
    with pytest.raises(IdcError) as caught:
        load(value)
    assert "recipe.json" in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [pytest.param(f, v, id=f"{f}={v!r}") for f, values in DAMAGE.items() for v in values]
)
def test_a_wrong_value_is_one_clear_line(load, field, value):
    assert field in the_line(load, old(**{field: value}))


def test_more_free_steps_than_there_were_timesteps_are_one_clear_line(load):
    assert "from 1 to 1000, got 1001" in the_line(load, old(FREE, num_inference_steps=1001))


@pytest.mark.parametrize("field", [field for field in old() if field != "version"])
def test_a_missing_field_is_named(load, field):
    value = old()
    del value[field]
    assert f"lacks the field '{field}'" in the_line(load, value)


def test_fields_of_one_version_are_unknown_to_the_other(load):
    assert "unknown field 'plan'" in the_line(load, old(plan={"steps": [{"timestep": 5}]}))
    value = Recipe.load(LISTED).to_json()
    assert "unknown field 'depth'" in the_line(load, {**value, "depth": 9})


@pytest.mark.parametrize("version", [True, 1.5, "1", 3])
def test_another_version_is_refused(load, version):
    assert f"has version {version!r}" in the_line(load, old(version=version))


# What they sample.


@pytest.fixture
def tuned(random_model, tmp_path):
    """The stored recipe, of a random model and of weights that were trained a little, in its first version."""
    source = {"name": "random", "path": str(random_model("ip2p"))}
    model = load_source("ip2p", source, device="cpu", dtype="float32")
    state = model.at(Cut("depth_skip", {"depth": 9})).unet.state_dict()
    folder = tmp_path / "old"
    folder.mkdir()
    save_file({name: (1.05 * value).contiguous() for name, value in state.items()}, folder / "unet.safetensors")
    weights = {"unet": {"file": "unet.safetensors", "sha256": file_digest(folder / "unet.safetensors")}}
    (folder / "recipe.json").write_text(json.dumps(old(model=model.source, weights=weights)))
    return model, folder / "recipe.json"


def picture(model, recipe):
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    example = Example(0, "", "", image, "make it darker")
    return translate(Task(), model.for_recipe(recipe), [example], recipe.plan)


def test_both_versions_sample_the_same_picture(tuned, tmp_path):
    """Bit for bit, by the loop and by the pipeline that diffusers runs."""
    model, path = tuned
    first = Recipe.load(path)
    second = Recipe.load(first.save(tmp_path / "new" / "recipe.json"))
    assert json.loads((tmp_path / "new" / "recipe.json").read_text())["version"] == 2
    assert (tmp_path / "new" / "unet.safetensors").is_file()
    made = picture(model, first)
    assert torch.equal(picture(model, second), made)

    # as its numbers say, which are spelled out here once more, and not as any others
    plan = Plan.over(
        [999, 640, 640, 3], sampler="ancestral", guidance={"guidance_scale": 2.0, "image_guidance_scale": 1.3}
    )
    spelled = Recipe("ip2p", model.source, Cut("depth_skip", {"depth": 9}), first.weights, plan, folder=path.parent)
    assert torch.equal(picture(model, spelled), made)
    for change in (
        {"weights": {}},
        {"plan": dataclasses.replace(plan, sampler="ddim")},
    ):
        assert not torch.equal(picture(model, dataclasses.replace(spelled, **change)), made)

    pipelines = [load_pipeline(recipe) for recipe in (first, second)]
    called = []
    for pipeline in pipelines:
        assert pipeline.scheduler.timesteps.tolist() == [999, 640, 640, 3]
        assert pipeline.scheduler.config.eta == 1.0  # ancestral
        image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        noise = torch.Generator().manual_seed(1)
        called.append(pipeline("make it darker", image, generator=noise, output_type="pt", **first.guidance).images)
    assert torch.equal(*called)
