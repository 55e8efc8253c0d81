"""idc export to a folder and back: every task, three depths, and all of them with -m slow."""

import shutil

import pytest
import torch

from idcompress import load_pipeline
from idcompress.adapters.export import own_pipeline
from idcompress.loading import load_source
from idcompress.stages import export

from .folders import TASKS, arguments, classes, export_to, recipe_for

STOCK = {1, 2, 5, 8, 9, 10, 11, 12}
TIMESTEPS = (640, 3)


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

    monkeypatch.setattr(export, "load_source", load)

    def pipeline(recipe):
        model = load(recipe.task, recipe.model, device="cpu", dtype="float32", prune="depth_skip")
        return own_pipeline(model.for_recipe(recipe), list(recipe.timesteps))

    return pipeline


@pytest.mark.parametrize("depths", [(4, 7, 9), pytest.param(range(1, 14), marks=pytest.mark.slow, id="all")])
@pytest.mark.parametrize("task", TASKS)
def test_there_and_back(task, depths, random_model, tmp_path, in_process, said):
    """Exported as the condition says; loads again and gives the in-process latents; sizes fit the parameters."""
    errors = {}
    for depth in depths:
        recipe = recipe_for(task, random_model(task), depth, TIMESTEPS)
        said.clear()
        folder = export_to(tmp_path / f"depth_{depth}", recipe)
        stock = task != "stablesr" and depth in STOCK | {13}
        assert any("plain diffusers loads it" in line for line in said) == stock
        assert stock or any(f"depth {depth} has no stock form" in line for line in said)
        libraries = {library for library, _ in classes(folder).values()}
        assert (libraries <= {"diffusers", "transformers"}) == stock

        here, there = in_process(recipe), load_pipeline(folder)
        for name in ("unet", "controlnet", "structure_encoder", "vae"):
            if name not in here.components:
                continue
            network = getattr(there, name)
            path = folder / name / "diffusion_pytorch_model.safetensors"
            header = int.from_bytes(path.read_bytes()[:8], "little")
            assert path.stat().st_size == 8 + header + sum(t.numel() * 4 for t in network.state_dict().values())
            # the control branch keeps whole levels and a dead middle in its stock form, all else is as small
            if name != "controlnet" or not stock:
                assert sum(p.numel() for p in network.parameters()) == sum(
                    p.numel() for p in getattr(here, name).parameters()
                )
        made = [pipe(**arguments(task)).images for pipe in (here, there)]
        errors[depth] = float((made[0] - made[1]).abs().max() / made[0].std())
        shutil.rmtree(folder)
    assert max(errors.values()) <= 1e-4, errors


@pytest.mark.parametrize("task", ["ip2p", "controlnet"])
def test_host(task, random_model, tmp_path, in_process, said):
    """A depth without stock form inside the next one that has one: exact, stock, larger, and said."""
    for depth, host in ((3, 5), (7, 8)):
        recipe = recipe_for(task, random_model(task), depth, TIMESTEPS)
        folder = export_to(tmp_path / f"depth_{depth}", recipe, host=True)
        assert {library for library, _ in classes(folder).values()} == {"diffusers", "transformers"}
        lines = "\n".join(said)
        assert f"stock form inside that of depth {host}" in lines and "of them zero" in lines
        assert f"{depth}, inside the stock form of depth {host}" in (folder / "README.md").read_text()
        here, there = in_process(recipe), load_pipeline(folder)
        made = [pipe(**arguments(task)).images for pipe in (here, there)]
        assert torch.allclose(*made, atol=1e-4)


def test_stablesr_never_has_a_stock_form(random_model, tmp_path, in_process, said):
    export_to(tmp_path / "a", recipe_for("stablesr", random_model("stablesr"), 9), host=True)
    lines = "\n".join(said)
    assert "is no class of diffusers" in lines and "export.host" not in lines
