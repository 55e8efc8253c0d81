"""Exported networks at every depth of every task; whole folders there and back, at every depth with -m slow."""

import json
import re
import shutil

import pytest
import torch

from idcompress import load_pipeline
from idcompress.adapters.pipeline import own_pipeline, with_components
from idcompress.errors import IdcError
from idcompress.export.stock_form import stock_obstacle, stock_pipeline
from idcompress.sources.load import load_source
from idcompress.stages import _values, export

from .folders import TASKS, arguments, classes, export_to, recipe_for

STOCK = {1, 2, 5, 8, 9, 10, 11, 12, 13}
TIMESTEPS = (640, 3)
STOCK_CLASSES = {"unet": "UNet2DConditionModel", "controlnet": "ControlNetModel"}


@pytest.fixture
def said(monkeypatch):
    """Lines that the stage says."""
    lines = []
    monkeypatch.setattr(export, "say", lines.append)
    return lines


@pytest.fixture
def in_process(monkeypatch, tmp_path):
    """recipe -> the pipeline that is exported; the base model is loaded once."""
    monkeypatch.chdir(tmp_path)
    models = {}

    def load(task, source, **settings):
        if task not in models:
            models[task] = load_source(task, source, **settings)
        return models[task]

    monkeypatch.setattr(_values, "load_source", load)

    def pipeline(recipe):
        model = load(recipe.task, recipe.model, device="cpu", dtype="float32", prune="depth_skip")
        return own_pipeline(model.for_recipe(recipe), recipe.plan)

    return pipeline


def params(network):
    return sum(parameter.numel() for parameter in network.parameters())


def size_of_parameters(path):
    """Bytes of a safetensors file without its header."""
    return path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")


@pytest.mark.parametrize("task", TASKS)
def test_networks_at_every_depth(task, random_model, tmp_path, in_process):
    """Stock exactly where the condition says; loads as it was saved; four bytes a parameter and no more."""
    for depth in range(1, 14):
        here = in_process(recipe_for(task, random_model(task), depth, TIMESTEPS[:1]))
        stock = stock_obstacle(here.unet, depth) is None
        assert stock == (task != "stablesr" and depth in STOCK)
        exported, loaded = stock_pipeline(here, None) if stock else here, {}
        for name in here.components.keys() & {"unet", "controlnet", "structure_encoder"}:
            network, folder = getattr(exported, name), tmp_path / f"{depth}_{name}"
            network.save_pretrained(folder)
            saved_as = json.loads((folder / "config.json").read_text())["_class_name"]
            assert saved_as == (STOCK_CLASSES[name] if stock else type(getattr(here, name)).__name__)
            loaded[name] = type(network).from_pretrained(folder)
            assert size_of_parameters(folder / "diffusion_pytorch_model.safetensors") == 4 * params(network)
            if name != "controlnet" or not stock:  # which keeps whole levels and a dead middle in its stock form
                assert params(network) == params(getattr(here, name))
        made = [pipe(**arguments(task)).images for pipe in (here, with_components(here, loaded))]
        assert torch.allclose(*made, atol=1e-4), depth


@pytest.mark.parametrize(
    ("task", "depths"),
    [
        ("controlnet", (9,)),
        ("stablesr", (7,)),
        *(pytest.param(task, range(1, 14), marks=pytest.mark.slow, id=f"{task} at all") for task in TASKS),
    ],
)
def test_there_and_back(task, depths, random_model, tmp_path, in_process, said):
    """Exported as the condition says; loads again and gives the in-process latents; sizes fit the parameters."""
    errors = {}
    for depth in depths:
        recipe = recipe_for(task, random_model(task), depth, TIMESTEPS)
        said.clear()
        folder = export_to(tmp_path / f"depth_{depth}", recipe)
        stock = task != "stablesr" and depth in STOCK
        assert any("plain diffusers loads it" in line for line in said) == stock
        assert stock or any(f"depth {depth} has no stock form" in line for line in said)
        libraries = {library for library, _ in classes(folder).values()}
        assert (libraries <= {"diffusers", "transformers"}) == stock

        here, there = in_process(recipe), load_pipeline(folder)
        for name in ("unet", "controlnet", "structure_encoder", "vae"):
            if name not in here.components:
                continue
            network = getattr(there, name)
            assert size_of_parameters(folder / name / "diffusion_pytorch_model.safetensors") == 4 * params(network)
        made = [pipe(**arguments(task)).images for pipe in (here, there)]
        errors[depth] = float((made[0] - made[1]).abs().max() / made[0].std())
        shutil.rmtree(folder)
    assert max(errors.values()) <= 1e-4, errors


@pytest.mark.parametrize(("task", "depth", "host"), [("ip2p", 3, 5), ("controlnet", 7, 8)])
def test_host(task, depth, host, random_model, tmp_path, in_process, said):
    """A depth without stock form inside the next one that has one: exact, stock, larger, and said."""
    recipe = recipe_for(task, random_model(task), depth, TIMESTEPS)
    folder = export_to(tmp_path / f"depth_{depth}", recipe, host=True)
    assert {library for library, _ in classes(folder).values()} == {"diffusers", "transformers"}
    lines = "\n".join(said)
    assert f"stock form inside that of depth {host}" in lines and "of them zero" in lines
    assert f"{depth}, inside the stock form of depth {host}" in (folder / "README.md").read_text()
    made = [pipe(**arguments(task)).images for pipe in (in_process(recipe), load_pipeline(folder))]
    assert torch.allclose(*made, atol=1e-4)


def test_stablesr_never_has_a_stock_form(random_model, tmp_path, in_process, said):
    export_to(tmp_path / "a", recipe_for("stablesr", random_model("stablesr"), 9), host=True)
    lines = "\n".join(said)
    assert "is no class of diffusers" in lines and "export.host" not in lines


def test_a_folder_is_searched_further(idc, random_model, tmp_path):
    """From the levels it kept; the recipe that comes of it cuts the folder."""
    folder = export_to(tmp_path / "small", recipe_for("ip2p", random_model("ip2p"), 7, TIMESTEPS))
    settings = ("experiment=smoke", f"model.path={folder}", "depth_search.min_depth=6")
    search = idc("depth-search", *settings, "hydra.run.dir=search")
    assert search.code == 0, search.err
    assert "depth  7/7" in search.out and "depth 6 of 7" in search.out
    further, direct = load_pipeline("search/recipe.json"), recipe_for("ip2p", random_model("ip2p"), 6, TIMESTEPS)
    made = [pipe(**arguments("ip2p")).images for pipe in (further, load_pipeline(direct))]
    assert torch.allclose(*made, atol=1e-4)
    refused = idc("depth-search", *settings, "depth=8")
    assert refused.code == 2
    assert refused.err.splitlines() == [
        "idc: error: depth must be between 1 and 7 for this U-Net, got 8; change depth="
    ]


@pytest.mark.parametrize("task", ["controlnet", "stablesr"])
def test_every_damaged_file_is_named(task, random_model, tmp_path, in_process):
    folder = export_to(tmp_path / "small", recipe_for(task, random_model(task), 7, TIMESTEPS))
    for path in sorted(folder.rglob("*.*")):
        if path.name == "README.md":
            continue
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(IdcError, match=re.escape(str(path))):
            load_pipeline(folder)
        path.unlink()
        if path.name != "recipe.json":  # without it the folder is an ordinary one
            with pytest.raises(IdcError, match=path.parent.name):
                load_pipeline(folder)
        path.write_bytes(whole)
    load_pipeline(folder)


def test_a_pipeline_beside_its_recipe(random_model, tmp_path):
    """Saved into the run folder that it was loaded from, which no export made."""
    recipe_for("ip2p", random_model("ip2p"), 7, TIMESTEPS).save(tmp_path / "recipe.json")
    load_pipeline(tmp_path).save_pretrained(tmp_path)
    assert load_pipeline(tmp_path).scheduler.timesteps.tolist() == list(TIMESTEPS)
