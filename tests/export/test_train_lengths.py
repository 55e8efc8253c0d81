"""Exports of models whose noise schedule has another length than 1000 timesteps."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch

from idcompress import Recipe, gamma_timesteps, load_pipeline
from idcompress.core.plan import Plan

from .folders import arguments, export_to, noise, recipe_for
from .test_onnx import in_process, run_card

LENGTH = 250
TIMESTEPS = (249, 160, 3, 3)


@pytest.mark.parametrize(("task", "depth"), [("ip2p", 9), ("stablesr", 9)])
def test_a_folder_makes_the_recipes_picture(model_of_length, tmp_path, monkeypatch, task, depth):
    """In the stock form, whose scheduler is made for the list, and in our own form."""
    monkeypatch.chdir(tmp_path)
    recipe = recipe_for(task, model_of_length(task, LENGTH), depth, TIMESTEPS)
    folder = export_to(tmp_path / "small", recipe)
    pipelines = {"recipe": load_pipeline(recipe), "folder": load_pipeline(folder)}
    if type(pipelines["folder"].unet) is diffusers.UNet2DConditionModel:
        stock = diffusers.DiffusionPipeline.from_pretrained(folder)
        listed, set_timesteps = stock.scheduler.config["timesteps"], stock.scheduler.set_timesteps
        assert tuple(listed) == TIMESTEPS
        stock.scheduler.set_timesteps = lambda *_, device=None: set_timesteps(timesteps=listed, device=device)
        pipelines["stock"] = stock
    made = {}
    for name, pipeline in pipelines.items():
        pipeline.set_progress_bar_config(disable=True)
        made[name] = torch.as_tensor(pipeline(**arguments(task)).images[0])
        assert len(pipeline.scheduler.alphas_cumprod) == LENGTH
    assert ("stock" in made) == ((task, depth) == ("ip2p", 9))
    for name in ("recipe", "folder"):
        assert pipelines[name].scheduler.timesteps.tolist() == list(TIMESTEPS)
    for picture in made.values():
        torch.testing.assert_close(picture, made["recipe"], atol=1e-4, rtol=1e-4)


def test_the_numpy_sampler_makes_the_picture_over_uniform_steps(model_of_length, tmp_path, monkeypatch):
    """A recipe without timesteps takes uniform ones, which begin at the model's own last timestep."""
    monkeypatch.chdir(tmp_path)
    recipe = recipe_for("ip2p", model_of_length("ip2p", LENGTH), 2, timesteps=None)
    recipe = dataclasses.replace(recipe, plan=Plan.over([999, 666, 333, 0], guidance=recipe.guidance))
    folder = export_to(tmp_path / "graphs", recipe, format="onnx", fold=True)
    noise(32).save(folder / "input.png")
    names = run_card(folder, monkeypatch)
    uniform = gamma_timesteps(1.0, 4, num_train_timesteps=LENGTH)
    assert names["timesteps"] == uniform
    listed = dataclasses.replace(recipe, plan=Plan.over(uniform, guidance=recipe.guidance), free_steps=False)
    assert np.abs(names["pixels"] - in_process(listed, noise(32), monkeypatch)).max() <= 1e-4
    assert Recipe.load(folder).timesteps is None
