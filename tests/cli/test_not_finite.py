"""NaN and infinity: an error in every command, with the network and the number format; never a black picture."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from idcompress.bench import references

SMOKE = "experiment=smoke"
PARTS = {
    "decoder": ("vae", "decoder.conv_out.bias", r"the autoencoder \(vae\) decodes"),
    "encoder": ("vae", "encoder.conv_out.bias", r"what the networks are told \(image"),
    "unet": ("unet", "conv_out.bias", "the output of unet"),
    "text": ("text_encoder", "final_layer_norm.bias", r"what the networks are told \(text\)"),
}


def broken(source, folder, part, name, value):
    shutil.copytree(source, folder)
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    weights[name] = torch.full_like(weights[name], value)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", PARTS)
def test_translate_says_which_network(idc, random_model, tmp_path, which, value):
    part, name, words = PARTS[which]
    folder = broken(random_model("ip2p"), tmp_path / "m", part, name, value)
    Image.new("RGB", (24, 24)).save("a.png")
    arguments = ("image=a.png", "prompt=make it blue", "recipe=none", "num_inference_steps=1", "output.path=out")
    result = idc("translate", f"model.path={folder}", *arguments)
    assert result.code == 2 and result.err.count("\n") == 1
    assert re.search(words, result.err), result.err
    assert "NaN or infinity, computed in float32" in result.err and not Path("out").exists()


@pytest.mark.parametrize("which", ["decoder", "unet"])
def test_stablesr_says_so_too(idc, random_model, tmp_path, which):
    part, name, _ = PARTS[which]
    folder = broken(random_model("stablesr"), tmp_path / "m", part, name, float("nan"))
    Image.new("RGB", (12, 12)).save("a.png")
    result = idc(
        "translate", "task=stablesr", f"model.path={folder}", "image=a.png", "recipe=none", "num_inference_steps=1"
    )
    assert result.code == 2 and "NaN or infinity" in result.err and result.err.count("\n") == 1


COMMANDS = {
    "depth-search": (),
    "tsopt": ("timesteps=uniform",),
    "evaluate": ("evaluate.metrics=[psnr]", "evaluate.latency=false"),
    "finetune": ("depth=11", "trainer.accelerator=cpu"),
    "study": ("study=step_counts",),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_makes_pictures_refuses_them(idc, random_model, tmp_path, command):
    folder = broken(random_model("ip2p"), tmp_path / "m", "vae", "decoder.conv_out.bias", float("nan"))
    result = idc(command, SMOKE, f"model.path={folder}", "recipe=none", *COMMANDS[command])
    assert result.code == 2 and "NaN or infinity" in result.err and result.err.count("\n") == 1, result.err


@pytest.mark.parametrize("command", ["export", "profile"])
def test_commands_that_sample_nothing_look_at_the_weights(idc, random_model, tmp_path, command):
    folder = broken(random_model("ip2p"), tmp_path / "m", "vae", "decoder.conv_out.bias", float("nan"))
    result = idc(command, SMOKE, f"model.path={folder}", "recipe=none", "export.path=x", "profile.latency=false")
    assert result.code == 2 and "decoder.conv_out.bias of vae holds NaN or infinity" in result.err
    assert result.err.count("\n") == 1 and not Path("x").exists()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("key", ["guidance_scale", "image_guidance_scale", "finetune.ema_decay", "timesteps.bias"])
def test_a_number_that_is_none_is_refused(idc, key, value):
    result = idc("depth-search", f"{key}={value}")
    assert result.code == 2 and re.search(rf"{key} must be finite, between 0 and .*, got {value}\n", result.err)
    assert not Path("outputs").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_recipes_guidance_too(idc, value):
    step = {"timestep": 500, "depth": None, "passes": "all", "refresh": True}
    plan = {"steps": [step], "sampler": "ddim", "fill": "zero", "guidance": {"guidance_scale": value}}
    recipe = {"version": 2, "task": "ip2p", "model": {"name": "tiny"}, "cut": None, "weights": {}, "plan": plan}
    recipe |= {"free_steps": False, "parent": None, "provenance": []}
    Path("recipe.json").write_text(json.dumps(recipe))
    Image.new("RGB", (24, 24)).save("a.png")
    result = idc("translate", "recipe=recipe.json", "image=a.png")
    assert result.code == 2 and "is no number of JSON" in result.err and result.err.count("\n") == 1


def test_a_reference_that_is_none_is_no_perfect_match(idc, random_model):
    """As an earlier version may have left one in the cache."""
    keys = (SMOKE, f"model.path={random_model('ip2p')}", "recipe=none", "depth=9", "evaluate.num_samples=1")
    assert idc("evaluate", *keys).code == 0
    for path in list(Path("outputs/cache/references").glob("*.safetensors")):
        references.keep(path.stem, torch.full((3, 32, 32), float("nan")))
    result = idc("evaluate", *keys, "seed=0", "report.num_images=1")
    assert result.code == 2 and result.err.count("\n") == 1
    assert re.search(r"the reference of 0000_\w+ after 4 steps \(.*safetensors\) holds NaN or infinity", result.err)
    assert "computed in float32" in result.err


def test_an_overflow_of_the_sampler_names_dtype_and_step(random_model):
    from idcompress.bench.translate import check_sample
    from idcompress.core.plan import Plan
    from idcompress.errors import NotFiniteError
    from idcompress.sources.load import load_source

    pipeline = load_source("ip2p", {"name": "random", "path": str(random_model("ip2p"))}, dtype="bfloat16").pipeline
    with pytest.raises(NotFiniteError, match=r"last of 2 steps, at timestep 4, holds NaN .* computed in bfloat16"):
        check_sample(torch.tensor([1.0, float("inf")]), Plan.over([999, 4]), pipeline)


def test_no_metric_takes_a_nan_for_a_perfect_match():
    from idcompress.errors import IdcError
    from idcompress.metrics.psnr import Metric, psnr
    from idcompress.types import Batch, Example

    image, bad = torch.zeros(3, 8, 8), torch.full((3, 8, 8), float("nan"))
    assert psnr(image, image) == float("inf") and psnr(image, bad) != psnr(image, bad)
    with pytest.raises(IdcError, match="the reference for 'a' holds NaN"):
        Metric().update(Batch([Example(0, "a", "a", image)], image[None], bad[None]))
