"""Depth-skip against the official U-Nets at every depth, and against the full-size parameter table."""

import json

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

import idcompress
from idcompress.adapters.controlnet import prune_controlnet
from idcompress.adapters.unet import unet_shape
from idcompress.core.skip_plan import skip_plan

ATOL = 2e-5  # neighbouring depths differ by at least 0.09
DEPTHS = range(1, 14)


@pytest.mark.parametrize("depth", DEPTHS)
def test_ip2p_equals_official(official_ip2p, depth):
    inputs = official_ip2p.inputs
    pruned = idcompress.depth_skip(official_ip2p.unet, depth)
    output = pruned(inputs["sample"], inputs["timesteps"], inputs["context"]).sample
    torch.testing.assert_close(output, official_ip2p.outputs[f"D{depth:02d}"], atol=ATOL, rtol=0)


@pytest.mark.parametrize("depth", DEPTHS)
def test_controlnet_equals_official(official_controlnet, depth):
    f = official_controlnet
    pruned = idcompress.depth_skip(f.unet, depth)
    residuals = [f.residuals[f"r{i:02d}"] for i in range(13)]

    def run(down, middle):
        return pruned(
            f.inputs["sample"],
            f.inputs["timesteps"],
            f.inputs["context"],
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample

    name = f"D{depth:02d}"
    torch.testing.assert_close(run(residuals[:12], residuals[12]), f.outputs[name], atol=ATOL, rtol=0)
    scaled = [r * s for r, s in zip(residuals, f.inputs["guess_scales"].tolist(), strict=True)]
    torch.testing.assert_close(run(scaled[:12], scaled[12]), f.outputs[f"{name}_guess"], atol=ATOL, rtol=0)
    silent = [torch.zeros_like(r) for r in residuals[:12]]
    torch.testing.assert_close(run(silent, residuals[12]), f.outputs[f"{name}_onlymid"], atol=ATOL, rtol=0)
    if depth < 13:  # without control: the official code cannot, its middle-only result is the same thing
        output = pruned(f.inputs["sample"], f.inputs["timesteps"], f.inputs["context"]).sample
        torch.testing.assert_close(output, f.outputs[f"{name}_onlymid"], atol=ATOL, rtol=0)


@pytest.mark.parametrize("depth", DEPTHS)
def test_pruned_control_branch_gives_the_same_residuals(official_controlnet, depth):
    f = official_controlnet
    pruned = idcompress.depth_skip(f.unet, depth)
    branch = prune_controlnet(f.branch, skip_plan(unet_shape(f.unet), depth))
    arguments = (f.inputs["sample"], f.inputs["timesteps"], f.inputs["context"], f.inputs["hint"].float())
    for guess_mode in (False, True):
        full = f.branch(*arguments, guess_mode=guess_mode, return_dict=False)
        down, middle = branch(*arguments, guess_mode=guess_mode, return_dict=False)
        assert len(down) == min(depth, 12)
        for ours, theirs in zip(down, full[0], strict=False):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        output = pruned(
            *arguments[:3], down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        if not guess_mode:
            torch.testing.assert_close(output, f.outputs[f"D{depth:02d}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("model", ["instruct_pix2pix", "sd15_controlnet_unet", "control_branch"])
def test_full_size_counts(parity_fact, model):
    table = json.loads(parity_fact("depth_skip/params_by_depth.json").read_text())
    branch = model == "control_branch"
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            in_channels=8 if model == "instruct_pix2pix" else 4, cross_attention_dim=768, sample_size=64
        )
    if branch:
        with torch.device("meta"):
            full = ControlNetModel(cross_attention_dim=768)
        assert _count(full) == 361_279_120
        shape = unet_shape(unet)
        assert _count(prune_controlnet(full, skip_plan(shape, 9))) == 180_658_320
        assert _count(prune_controlnet(full, skip_plan(shape, 8))) == 113_119_120
        return
    totals = [_count(idcompress.depth_skip(unet, depth)) for depth in DEPTHS]
    assert totals == table[model]["pruned_model_total_D01_to_D13"]


def _count(model):
    return sum(p.numel() for p in model.parameters())
