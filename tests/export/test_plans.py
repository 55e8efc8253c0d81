"""Folders of plans whose steps differ: cuts with and without a stock form, and calls that a plan knows nothing of."""

import dataclasses

import pytest
import torch
from diffusers import DiffusionPipeline

from idcompress import load_pipeline
from idcompress.adapters.following import FollowsPlan
from idcompress.core.plan import Step
from idcompress.errors import IdcError

from .folders import arguments, export_to, recipe_for

STEPS = (Step(981), Step(640, 5, "held", False), Step(300), Step(3, 3, "text"))


def planned(task, model, depth, fill="hold", steps=STEPS):
    recipe = recipe_for(task, model, depth)
    return dataclasses.replace(recipe, plan=dataclasses.replace(recipe.plan, steps=steps, fill=fill))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))


def picture(pipeline, **further):
    return pipeline(**arguments("controlnet"), **further).images


@pytest.mark.parametrize("host", [False, True])
def test_a_cut_without_stock_form(random_model, tmp_path, host):
    """With idcompress as it is, with plain diffusers inside the next depth that has one: the same picture."""
    recipe = planned("controlnet", random_model("controlnet"), 7)
    folder = export_to(tmp_path / "out", recipe, host=host)
    wanted, found = load_pipeline(recipe, device="cpu"), load_pipeline(folder, device="cpu")
    assert isinstance(found, FollowsPlan) and found.computed == wanted.computed
    assert torch.allclose(picture(found), picture(wanted), atol=1e-4)
    assert (folder / "pipeline.py").exists() == host
    if not host:
        return
    stock = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    stock.set_progress_bar_config(disable=True)
    assert type(stock).__module__.partition(".")[0] == "diffusers_modules"
    assert [dataclasses.astuple(step) for step in stock.computed] == list(map(dataclasses.astuple, wanted.computed))
    made = picture(stock)
    assert torch.allclose(made, picture(wanted), atol=1e-4)
    stock.disable()
    assert not torch.allclose(picture(stock), made, atol=1e-3)
    assert stock.scheduler.config.timesteps == [step.timestep for step in STEPS]
    stock.enable()
    assert torch.equal(picture(stock), made)
    with pytest.raises(Exception, match="write a folder that keeps it by idc export"):
        stock.save_pretrained(tmp_path / "again")


def test_layers_that_a_step_passes_by(random_model, tmp_path):
    """In plain diffusers of the whole network; of a cut one, whose stock form has other names, with idcompress."""
    passed = ("up_blocks.3.resnets.1", "down_blocks.0.attentions.0")
    steps = (STEPS[0], dataclasses.replace(STEPS[1], skip=passed), *STEPS[2:])
    made = {}
    for depth in (None, 8):
        recipe = planned("controlnet", random_model("controlnet"), depth, steps=steps)
        folder = export_to(tmp_path / f"{depth}", recipe)
        made[depth] = picture(load_pipeline(recipe, device="cpu"))
        assert torch.allclose(picture(load_pipeline(folder, device="cpu")), made[depth], atol=1e-4)
        assert (folder / "pipeline.py").exists() == (depth is None)
    stock = DiffusionPipeline.from_pretrained(tmp_path / "None", trust_remote_code=True)
    assert torch.allclose(picture(stock), made[None], atol=1e-4)
    nothing = load_pipeline(planned("controlnet", random_model("controlnet"), None), device="cpu")
    assert not torch.allclose(picture(nothing), made[None], atol=1e-2)
    with pytest.raises(IdcError, match="plan passes layers by; use export"):
        export_to(tmp_path / "graphs", recipe, format="onnx")


def test_guess_mode_calls_the_branch_for_the_text_alone(random_model):
    """And so does every step that leaves the other passes out, in either mode."""
    batches = []
    for steps, guess, wanted in (
        (STEPS, False, [2, 2, 1]),
        (STEPS, True, [1, 1, 1]),
    ):
        pipeline = load_pipeline(planned("controlnet", random_model("controlnet"), None, "zero", steps), device="cpu")
        branches = [stage["controlnet"] for stage in pipeline._stages(pipeline._really).values()]
        handles = [b.register_forward_pre_hook(lambda _, args: batches.append(len(args[0]))) for b in branches]
        picture(pipeline, guess_mode=guess)
        assert batches == wanted
        batches.clear()
        for handle in handles:
            handle.remove()


def test_calls_without_guidance_have_one_pass(random_model):
    """Then a step that leaves guidance out leaves nothing out."""
    varied = tuple(dataclasses.replace(step, depth=None, refresh=True) for step in STEPS)
    pipeline = load_pipeline(planned("controlnet", random_model("controlnet"), None, steps=varied), device="cpu")
    given = arguments("controlnet") | {"guidance_scale": 1.0}
    found = pipeline(**given).images
    whole = planned("controlnet", random_model("controlnet"), None, steps=varied)
    whole = dataclasses.replace(whole, plan=whole.plan.all_whole)
    assert torch.equal(found, load_pipeline(whole, device="cpu")(**given).images)
