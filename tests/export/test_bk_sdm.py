"""BK-SDM's cuts exported: equal to the cut pipeline, in stock classes where there are some for it."""

import dataclasses

import pytest
import torch
from diffusers import DiffusionPipeline

from idcompress import Recipe, load_pipeline
from idcompress.pruning.bk_sdm import given

from .folders import arguments, classes, export_to, recipe_for


@pytest.mark.parametrize(
    ("task", "size"), [("ip2p", "base"), ("ip2p", "tiny"), ("controlnet", "base"), ("stablesr", "small")]
)
def test_an_exported_folder_is_the_cut_pipeline(random_model, tmp_path, monkeypatch, task, size):
    monkeypatch.chdir(tmp_path)
    recipe = dataclasses.replace(recipe_for(task, random_model(task), None), cut=given(size=size))
    folder = export_to(tmp_path / "out", recipe)
    cut, loaded = load_pipeline(recipe), load_pipeline(folder)
    made = [pipe(**arguments(task)).images for pipe in (cut, loaded)]
    assert torch.allclose(*made, atol=2e-4)  # of some 20; a random network's steps enlarge what rounding begins
    assert sum(p.numel() for p in loaded.unet.parameters()) == sum(p.numel() for p in cut.unet.parameters())
    assert Recipe.load(folder).provenance[-1]["kept"] == f"bk_sdm {size}"
    if task == "ip2p":
        assert classes(folder)["unet"] == ["diffusers", "UNet2DConditionModel"]
        plain = DiffusionPipeline.from_pretrained(folder)
        inputs = (torch.randn(1, 8, 8, 8), 500, torch.randn(1, 12, 16))
        with torch.no_grad():
            # but for rounding: weights of a mapped file may begin off the boundary of a vector register
            torch.testing.assert_close(plain.unet(*inputs).sample, cut.unet(*inputs).sample, rtol=1e-5, atol=1e-6)


def test_onnx_graphs_hold_a_cut_control_branch(random_model, tmp_path, monkeypatch):
    """Every graph is compared with torch as it is written."""
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    recipe = dataclasses.replace(recipe_for("controlnet", random_model("controlnet"), None), cut=given(size="small"))
    folder = export_to(tmp_path / "out", recipe, format="onnx")
    assert {"unet.onnx", "controlnet.onnx"} <= {path.name for path in folder.iterdir()}
