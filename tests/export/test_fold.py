"""Folding constants into a network changes its output by rounding alone, and saves what the arithmetic says."""

import json
import re

import pytest
import tiny_random
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from idcompress import load_pipeline
from idcompress.adapters.fold import fold_pipeline, fold_prompt, fold_timesteps, slim_first_layer
from idcompress.adapters.unet import depth_skip

from .folders import TIMESTEPS, arguments, recipe_for


def params(model):
    return sum(parameter.numel() for parameter in model.parameters())


def inputs(size=8, timestep=640):
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(1, 3, 16, generator=generator)
    return torch.randn(2, 8, size, size, generator=generator), torch.tensor(timestep), states.expand(2, -1, -1)


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 16])
def test_slimming(size):
    full = tiny_random.unet(8)
    for depth in range(1, 13):
        cut = depth_skip(full, depth)
        before, output = params(cut), cut(*inputs(size)).sample
        saved = slim_first_layer(cut)
        assert params(cut) == before - saved
        assert (saved > 0) == (depth not in (3, 4, 6, 7))
        assert (cut(*inputs(size)).sample - output).abs().max() <= 1e-5, depth
    assert slim_first_layer(full) == 0


def test_slimming_at_full_size(shared):
    config = json.loads((shared / "fixtures/depth_skip/vanilla_configs.json").read_text())["unet_ip2p_in8"]["D12"]
    config |= {"mid_block_type": "UNetMidBlock2DCrossAttn", "layers_per_block": 2}
    with torch.device("meta"):
        full = UNet2DConditionModel.from_config(config)
    for depth, left in ((8, 357_028_804), (9, 506_854_084)):
        cut = depth_skip(full, depth)
        assert slim_first_layer(cut) == 16_375_040
        assert params(cut) == left


@torch.no_grad()
def test_timesteps():
    unet = tiny_random.unet(8)
    wanted = {t: unet(*inputs(timestep=t)).sample for t in TIMESTEPS}
    before = params(unet)
    saved = fold_timesteps(unet, TIMESTEPS)
    assert saved == before - params(unet) > 0
    for timestep, output in wanted.items():
        assert (unet(*inputs(timestep=timestep)).sample - output).abs().max() <= 1e-5
    assert unet(*inputs(timestep=500)).sample.isnan().all()


@torch.no_grad()
def test_prompt():
    unet = tiny_random.unet(8)
    sample, timestep, states = inputs()
    wanted = unet(sample, timestep, states).sample
    fold_prompt(unet, states[:1])
    assert (unet(sample, timestep, torch.zeros_like(states)).sample - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("task", ["ip2p", "controlnet", "stablesr"])
def test_pipelines(task, random_model, capsys):
    """load_pipeline(fold=True) gives the pipeline's result from fewer parameters, and prints how many."""
    recipe = recipe_for(task, random_model(task), 9)
    plain, folded = load_pipeline(recipe), load_pipeline(recipe, fold=True)
    names = [name for name in ("unet", "controlnet", "structure_encoder") if name in plain.components]
    saved = [params(getattr(plain, name)) - params(getattr(folded, name)) for name in names]
    assert min(saved) > 0
    printed = re.findall(r"folded: [\w ]+, ([\d,]+) parameters less", capsys.readouterr().out)
    assert sum(int(number.replace(",", "")) for number in printed) == sum(saved)
    ours, theirs = (pipe(**arguments(task)).images for pipe in (plain, folded))
    assert (ours - theirs).abs().max() <= 1e-5 * max(1, float(ours.std()))


def test_a_fixed_prompt_needs_no_text_encoder(random_model):
    """A StableSR with its text tower in place of the stored embedding."""
    pipeline = tiny_random.stablesr_pipeline()
    config = CLIPTextConfig(
        vocab_size=200, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    tokenizer = CLIPTokenizer.from_pretrained(random_model("ip2p") / "tokenizer")
    pipeline.register_modules(prompt_embedding=None, text_encoder=CLIPTextModel(config).eval(), tokenizer=tokenizer)
    plain, tower = pipeline(**arguments("stablesr")).images, params(pipeline.text_encoder)
    assert fold_pipeline(pipeline)["text encoder"] == tower
    assert pipeline.text_encoder is None and pipeline.tokenizer is None
    assert (pipeline(**arguments("stablesr")).images - plain).abs().max() <= 1e-5
