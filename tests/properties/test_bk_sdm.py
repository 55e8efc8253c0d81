"""BK-SDM's cuts: published sizes to the parameter, weights by the published map, side networks unchanged."""

import copy
import json

import pytest
import tiny_random
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from idcompress import registry
from idcompress.adapters.bk_sdm import SIZES, bk_config, bk_unet, matched_features, teacher_name
from idcompress.adapters.cut_models import named
from idcompress.core.cut import Cut
from idcompress.costs.parameters import count_parameters
from idcompress.errors import IdcError
from idcompress.models.official import meta_components
from idcompress.models.stablesr import StableSRUNet2DConditionModel
from idcompress.pruning import bk_sdm

SD2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
# What base drops of Stable Diffusion, by its names; small drops the middle block as well, tiny the deepest stage, too.
BASE = {f"{side}_blocks.{n}.resnets.1" for side in ("down", "up") for n in range(4)}
BASE |= {f"down_blocks.{n}.attentions.1" for n in range(3)} | {f"up_blocks.{n}.attentions.1" for n in range(1, 4)}
DROPPED = {"base": BASE, "small": BASE | {"mid_block"}}
DROPPED["tiny"] = DROPPED["small"] | {"down_blocks.2.downsamplers.0", "down_blocks.3", "up_blocks.0"}


def cut_of(components, size):
    return bk_sdm.apply(components, bk_sdm.given(size=size))


@pytest.fixture(scope="module")
def published():
    """The networks of Stable Diffusion 1 with its control branch, shapes alone."""
    return meta_components("controlnet")


@pytest.mark.parametrize("size", SIZES)
def test_counts_are_the_published_ones(shared, published, size):
    known = json.loads((shared / "fixtures/baselines/sizes.json").read_text())
    assert count_parameters(published["unet"])[0] == known["sd1_unet"]["params"]
    assert count_parameters(cut_of(published, size)["unet"])[0] == known["bk_sd1"][size]["params"]


@pytest.mark.parametrize("family", [{}, SD2])
@pytest.mark.parametrize("size", SIZES)
def test_what_goes_is_what_the_released_configurations_lack(published, size, family):
    config = {k: v for k, v in published["unet"].config.items() if not k.startswith("_")} | family
    with torch.device("meta"):
        whole = UNet2DConditionModel.from_config(config)
    small = bk_unet(whole, size)
    gone = {name for name in DROPPED[size] if not any(name.startswith(f"{other}.") for other in DROPPED[size])}
    lost = sum(p.numel() for name in gone for p in whole.get_submodule(name).parameters())
    assert count_parameters(small)[0] == count_parameters(whole)[0] - lost
    levels = 3 if size == "tiny" else 4
    assert list(small.config.block_out_channels) == [320, 640, 1280, 1280][:levels]
    assert small.config.down_block_types[:3] == ["CrossAttnDownBlock2D"] * 3
    assert small.config.up_block_types[-3:] == ["CrossAttnUpBlock2D"] * 3
    assert (small.mid_block is None) == (size != "base")


@pytest.mark.parametrize(
    ("size", "name", "whole"),
    [
        ("base", "up_blocks.1.resnets.1.conv1.weight", "up_blocks.1.resnets.2.conv1.weight"),
        ("small", "up_blocks.3.attentions.1.proj_in.bias", "up_blocks.3.attentions.2.proj_in.bias"),
        ("base", "up_blocks.0.upsamplers.0.conv.bias", "up_blocks.0.upsamplers.0.conv.bias"),
        ("tiny", "up_blocks.0.resnets.0.norm1.bias", "up_blocks.1.resnets.0.norm1.bias"),
        ("tiny", "up_blocks.2.resnets.1.norm1.bias", "up_blocks.3.resnets.2.norm1.bias"),
        ("tiny", "down_blocks.2.resnets.0.norm1.bias", "down_blocks.2.resnets.0.norm1.bias"),
    ],
)
def test_weights_are_those_of_the_published_map(size, name, whole):
    assert teacher_name(name, size) == whole
    unet = tiny_random.unet()
    small, weights = bk_unet(unet, size), unet.state_dict()
    assert torch.equal(small.state_dict()[name], weights[whole])
    assert small.state_dict()[name].data_ptr() == weights[whole].data_ptr()  # a cut takes no memory
    assert type(small) is type(unet)


@pytest.mark.parametrize("size", SIZES)
def test_a_whole_unet_whose_lost_layers_do_nothing_is_the_smaller_one(size):
    """An oracle for map and order: with the dropped layers made pass-throughs the whole model computes the same."""
    unet = tiny_random.unet()
    small = copy.deepcopy(bk_unet(unet, size))
    with torch.no_grad():
        for stage in range(4):
            middle = unet.up_blocks[stage].resnets[1]
            hidden = middle.conv1.out_channels
            for layer in (unet.down_blocks[stage].resnets[1], middle):
                layer.conv2.weight.zero_(), layer.conv2.bias.zero_()
            middle.conv_shortcut.weight.zero_(), middle.conv_shortcut.bias.zero_()
            middle.conv_shortcut.weight[:, :hidden, 0, 0] = torch.eye(hidden)
            for block in (unet.down_blocks[stage], unet.up_blocks[stage]):
                if getattr(block, "attentions", None):
                    block.attentions[1].proj_out.weight.zero_(), block.attentions[1].proj_out.bias.zero_()
    sample, text = torch.randn(2, 8, 8, 8), torch.randn(2, 5, 16)
    inputs = (sample, torch.tensor([7, 900]), text)
    if size == "tiny":
        # What comes from the deepest stage is what its down block takes, halved: compare the encoders alone.
        found, wanted = [], []
        small.down_blocks[2].resnets[0].register_forward_hook(lambda m, i, o: found.append(o))
        unet.down_blocks[2].resnets[0].register_forward_hook(lambda m, i, o: wanted.append(o))
        small(*inputs), unet(*inputs)
        assert torch.equal(found[0], wanted[0])
        return
    if size == "small":
        unet.mid_block = None
    torch.testing.assert_close(small(*inputs).sample, unet(*inputs).sample, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_matched_features_have_the_same_shapes(size):
    unet = tiny_random.unet()
    small, shapes = bk_unet(unet, size), {}
    pairs = matched_features(small, size)
    assert len(pairs) == (6 if size == "tiny" else 8)
    if size == "tiny":
        assert pairs["down_blocks.2.attentions.0.proj_out"] == "down_blocks.2.attentions.1.proj_out"
        assert [pairs[f"up_blocks.{n}"] for n in range(3)] == ["up_blocks.1", "up_blocks.2", "up_blocks.3"]
        assert "down_blocks.2" not in pairs
    else:
        assert all(own == whole for own, whole in pairs.items())
    for network, names in ((small, pairs.keys()), (unet, pairs.values())):
        for name in names:
            network.get_submodule(name).register_forward_hook(
                lambda m, i, out, key=(network is small, name): shapes.update(
                    {key: (out[0] if isinstance(out, tuple) else out).shape}
                )
            )
        network(torch.randn(1, 8, 8, 8), 3, torch.randn(1, 5, 16))
    assert all(shapes[True, own] == shapes[False, whole] for own, whole in pairs.items())


# side networks


@pytest.fixture(scope="module")
def control():
    shape = {k: v for k, v in tiny_random.UNET.items() if k != "sample_size"}
    torch.manual_seed(2)
    branch = ControlNetModel(in_channels=4, conditioning_embedding_out_channels=(4, 8, 16), **shape).eval()
    for block in (*branch.controlnet_down_blocks, branch.controlnet_mid_block):
        torch.nn.init.normal_(block.weight, std=0.1)
    return {"unet": tiny_random.unet(4), "controlnet": branch}


CONTROL_INPUTS = (torch.randn(1, 4, 8, 8), 11, torch.randn(1, 5, 16), torch.rand(1, 3, 32, 32))
KEPT = {"base": (0, 1, 3, 4, 6, 7, 9, 10), "small": (0, 1, 3, 4, 6, 7, 9, 10), "tiny": (0, 1, 3, 4, 6, 7)}


def same_but_for_rounding(one, other):
    """Weights of a mapped file may begin off the boundary of a vector register, where kernels round differently."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("guess_mode", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_residuals_of_lost_layers_are_not_passed(control, size, guess_mode, tmp_path):
    """The others are the whole branch's, also once saved and loaded, and the smaller U-Net takes them all."""
    replaced = cut_of(control, size)
    branch = replaced["controlnet"]
    with torch.no_grad():
        given = {"guess_mode": guess_mode, "return_dict": False}
        whole, whole_middle = control["controlnet"](*CONTROL_INPUTS, **given)
        down, middle = branch(*CONTROL_INPUTS, **given)
        assert all(torch.allclose(d, whole[n], rtol=1e-6) for d, n in zip(down, KEPT[size], strict=True))
        assert torch.equal(middle, whole_middle) if size == "base" else not middle.any()
        replaced["unet"](
            *CONTROL_INPUTS[:3], down_block_additional_residuals=down, mid_block_additional_residual=middle
        )
        assert len(branch(*CONTROL_INPUTS).down_block_res_samples) == len(down)
        named(branch).save_pretrained(tmp_path)
        again = type(branch).from_pretrained(tmp_path)(*CONTROL_INPUTS, **given)
    for one, other in zip((*again[0], again[1]), (*down, middle), strict=True):
        same_but_for_rounding(one, other)
    sizes = [count_parameters(network)[0] for network in (control["controlnet"], branch)]
    assert sizes[1] < sizes[0] * (0.999 if size == "base" else 0.8 if size == "small" else 0.5)


@pytest.mark.parametrize("size", SIZES)
def test_stablesr_loses_its_spade_with_the_layers(size, tmp_path):
    pipeline = tiny_random.stablesr_pipeline()
    replaced = cut_of(pipeline.components, size)
    unet, encoder = replaced["unet"], replaced["structure_encoder"]
    assert type(unet) is StableSRUNet2DConditionModel
    assert len(encoder.feature_blocks) == len(unet.up_blocks)
    inputs = (torch.randn(1, 4, 8, 8), 5, torch.randn(1, 5, 8))
    with torch.no_grad():
        features = encoder(inputs[0], 5)
        output = unet(*inputs, features).sample
        unet.save_pretrained(tmp_path)
        again = StableSRUNet2DConditionModel.from_pretrained(tmp_path)
        same_but_for_rounding(again(*inputs, features).sample, output)


# where it does not fit


@pytest.mark.parametrize(
    ("changes", "size", "says"),
    [
        ({"layers_per_block": 1}, "base", "layers_per_block=1"),
        ({"block_out_channels": (16, 32, 64, 32)}, "tiny", "as wide as the one above it"),
        ({"depth": 7}, "base", "cut to depth 7"),
    ],
)
def test_a_unet_that_the_rule_does_not_fit_is_refused_in_one_line(changes, size, says):
    config = dict(tiny_random.unet().config) | changes
    with pytest.raises(ValueError, match=says):
        bk_config(config, size)


def test_fewer_levels_fit_where_their_widths_allow():
    torch.manual_seed(0)
    config = tiny_random.UNET | {"block_out_channels": (16, 32, 32)}
    config |= {"down_block_types": ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",)}
    unet = UNet2DConditionModel(
        in_channels=4, out_channels=4, up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2, **config
    )
    for size in SIZES:
        small = bk_unet(unet, size)
        assert small(torch.randn(1, 4, 8, 8), 3, torch.randn(1, 5, 16)).sample.shape == (1, 4, 8, 8)
        assert matched_features(small, size)


def test_a_cut_that_names_no_size_is_refused():
    unet = {"unet": tiny_random.unet()}
    assert bk_sdm.apply(unet, Cut("bk_sdm")) == {}
    for choice in ({"size": "large"}, {"size": "base", "depth": 3}):
        with pytest.raises(IdcError, match="must name a size"):
            bk_sdm.apply(unet, Cut("bk_sdm", choice))
    assert registry.load("prune", "bk_sdm").words(unet, bk_sdm.given(size="tiny")) == "BK-SDM tiny"
