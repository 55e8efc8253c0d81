"""What holds for depth-skip on any U-Net, against a forward pass written out here block by block."""

import copy
import dataclasses
import json

import pytest
import tiny_random
import torch
from diffusers import UNet2DConditionModel

import idcompress
from idcompress.adapters.unet import depth as present_depth
from idcompress.adapters.unet import unet_shape
from idcompress.core.skip_plan import SkipPlan, UNetShape, skip_plan
from idcompress.costs.parameters import count_parameters

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture(scope="module", autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def small(**changes):
    settings = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    torch.manual_seed(1)
    return UNet2DConditionModel(**settings | changes).eval()


CROSS3 = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
MODELS = {
    "sd": tiny_random.unet,
    "two_levels": small,
    "three_levels": lambda: small(block_out_channels=(8, 16, 16), **CROSS3),
    "layers_per_level": lambda: small(block_out_channels=(8, 16, 16), layers_per_block=(1, 2, 3), **CROSS3),
    "widths": lambda: small(block_out_channels=(16, 24, 8), layers_per_block=2, **CROSS3),
    "no_middle": lambda: small(mid_block_type=None, layers_per_block=2),
    "no_attention": lambda: small(
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2D",
        layers_per_block=2,
    ),
    "one_level": lambda: small(
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=2,
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def unet(request):
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def cuts(unet):
    """Depth -> the model cut to it."""
    return {depth: idcompress.depth_skip(unet, depth) for depth in depths(unet)}


@pytest.fixture(scope="module")
def sd():
    return MODELS["sd"]()


def inputs(unet, batch=1, height=8, width=8):
    generator = torch.Generator().manual_seed(5)
    sample = torch.randn(batch, unet.config.in_channels, height, width, generator=generator)
    context = torch.randn(batch, 5, unet.config.cross_attention_dim, generator=generator)
    return sample, torch.arange(batch) * 300 + 17, context


def depths(unet):
    return range(1, idcompress.full_depth(unet) + 1)


def written_out(unet, depth, sample, timestep, context, residuals=()):
    """The U-Net at a depth, unit by unit: `depth` encoder units, zeros (or the middle), `depth` decoder units."""
    embedding = unet.time_embedding(unet.time_proj(timestep))

    def layers(block):
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        return zip(block.resnets, attentions, strict=True)

    def run(layer, hidden):
        resnet, attention = layer
        hidden = resnet(hidden, embedding)
        return hidden if attention is None else attention(hidden, encoder_hidden_states=context).sample

    encoder = [unet.conv_in]
    for block in unet.down_blocks:
        encoder += [lambda hidden, layer=layer: run(layer, hidden) for layer in layers(block)]
        encoder += list(block.downsamplers or ())
    decoder = []
    for block in unet.up_blocks:
        units = [(layer, None) for layer in layers(block)]
        units[-1] = (units[-1][0], block.upsamplers[0] if block.upsamplers else None)
        decoder += units
    assert len(encoder) == len(decoder)

    hidden, skips = sample, []
    for unit in encoder[:depth]:
        hidden = unit(hidden)
        skips.append(hidden)
    skips = [skip + residuals[i] for i, skip in enumerate(skips)] if residuals else skips
    if depth <= len(encoder):
        wanted = decoder[-depth][0][0].in_channels - skips[-1].shape[1]
        hidden = torch.zeros(hidden.shape[0], wanted, *hidden.shape[2:])
    elif getattr(unet.mid_block, "has_cross_attention", False):
        hidden = unet.mid_block(hidden, embedding, encoder_hidden_states=context)
    elif unet.mid_block is not None:
        hidden = unet.mid_block(hidden, embedding)
    for layer, upsampler in decoder[-depth:]:
        hidden = run(layer, torch.cat([hidden, skips.pop()], dim=1))
        if upsampler is not None:
            hidden = upsampler(hidden, skips[-1].shape[2:])
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 9, 13)], ids=["8x8", "batch3_9x13"])
def test_every_depth_equals_the_forward_pass_written_out(unet, cuts, size):
    arguments = inputs(unet, *size)
    outputs = []
    for depth, pruned in cuts.items():
        output = pruned(*arguments).sample
        assert output.shape == (size[0], 4, *size[1:])
        torch.testing.assert_close(output, written_out(unet, depth, *arguments), atol=2e-5, rtol=1e-5)
        assert all((output - earlier).abs().max() > 1e-3 for earlier in outputs)  # the depth matters
        outputs.append(output)


def test_full_depth_is_bit_identical(unet, cuts):
    arguments, full = inputs(unet, 2), cuts[idcompress.full_depth(unet)]
    assert torch.equal(full(*arguments).sample, unet(*arguments).sample)
    assert full.config == unet.config
    assert full is not unet


def test_parameters_fall_and_survivors_keep_name_and_value(unet, cuts):
    state, counts = unet.state_dict(), []
    for pruned in (model.state_dict() for model in cuts.values()):
        assert pruned.keys() <= state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in pruned.items())
        assert all(tensor.data_ptr() == state[name].data_ptr() for name, tensor in pruned.items())  # no second copy
        counts.append(sum(tensor.numel() for tensor in pruned.values()))
    # without a middle block the last cut takes away nothing but the connection
    rising = counts if unet.mid_block is not None else counts[:-1]
    assert rising == sorted(set(rising))
    assert counts[-1] == sum(tensor.numel() for tensor in state.values())


def test_the_argument_is_untouched(unet):
    arguments = inputs(unet)
    before, state, config = unet(*arguments).sample, copy.deepcopy(unet.state_dict()), dict(unet.config)
    for depth in {1, idcompress.full_depth(unet) - 1, idcompress.full_depth(unet)}:
        pruned = idcompress.depth_skip(unet, depth)
        for parameter in pruned.parameters():
            parameter.zero_()
    assert torch.equal(unet(*arguments).sample, before)
    assert dict(unet.config) == config
    assert unet.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in unet.state_dict().items())
    assert [name for name, module in unet.named_modules() if module._forward_pre_hooks] == []


def test_pruning_twice_is_pruning_once(unet, cuts):
    arguments, full = inputs(unet, 1, 9, 13), idcompress.full_depth(unet)
    for depth, direct in cuts.items():
        between = (depth + full) // 2
        assert idcompress.full_depth(cuts[between]) == full
        assert present_depth(cuts[between]) == between
        twice = idcompress.depth_skip(cuts[between], depth)
        assert list(twice.state_dict()) == list(direct.state_dict())
        assert torch.equal(twice(*arguments).sample, direct(*arguments).sample)
        assert dict(twice.config) == dict(direct.config)


def test_depths_out_of_range(unet, cuts):
    full = idcompress.full_depth(unet)
    for depth in (0, -1, full + 1):
        with pytest.raises(ValueError, match=f"between 1 and {full} for this U-Net, got {depth}"):
            idcompress.depth_skip(unet, depth)
    with pytest.raises(ValueError, match=f"already cut to depth {full - 1}"):
        idcompress.depth_skip(cuts[full - 1], full)


def test_plans_survive_json(unet):
    for depth in depths(unet):
        plan = skip_plan(unet_shape(unet), depth)
        fields = json.loads(json.dumps(plan.to_json()))
        assert SkipPlan(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}) == plan


def test_plans_are_counted_in_units(unet):
    """A plan keeps depth encoder units (conv_in included) and depth decoder units."""
    shape = unet_shape(unet)
    for depth in depths(unet)[:-1]:
        plan = skip_plan(shape, depth)
        assert 1 + sum(n or 0 for n in plan.down_layers) + sum(plan.downsamplers) == depth
        assert sum(plan.up_layers) == depth
        assert plan.hidden_channels > 0


def test_a_model_with_another_number_of_decoder_layers_is_refused():
    shape = unet_shape(small())
    with pytest.raises(ValueError, match="one decoder layer per skip"):
        dataclasses.replace(shape, up_layers=(2, 3))
    assert isinstance(shape, UNetShape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("depth", [1, 4, 9])
def test_half_precision_stays_half(sd, dtype, depth):
    sample, timestep, context = inputs(sd)
    expected = idcompress.depth_skip(sd, depth)(sample, timestep, context).sample
    pruned = idcompress.depth_skip(copy.deepcopy(sd).to(dtype), depth)
    seen = []
    for resnet in (module for name, module in pruned.named_modules() if name.endswith("norm1")):
        resnet.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    output = pruned(sample.to(dtype), timestep, context.to(dtype)).sample
    assert output.dtype == dtype
    assert set(seen) == {dtype}  # a zero in another dtype would promote the concatenation
    assert {p.dtype for p in pruned.parameters()} == {dtype}
    tolerance = 0.02 if dtype == torch.float16 else 0.1
    assert (output.float() - expected).abs().max() < tolerance


def test_modes_and_copies(sd):
    arguments = inputs(sd)
    pruned = idcompress.depth_skip(sd, 7)
    assert not pruned.training
    output = pruned(*arguments).sample
    assert torch.equal(copy.deepcopy(pruned)(*arguments).sample, output)
    assert torch.equal(pruned(*arguments, return_dict=False)[0], output)
    frozen = idcompress.depth_skip(copy.deepcopy(sd).requires_grad_(False), 7)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    with torch.enable_grad():
        pruned.train()(*arguments).sample.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pruned.parameters())


def test_time_and_class_conditions_pass_through():
    unet = small(class_embed_type="timestep", layers_per_block=2, resnet_time_scale_shift="scale_shift")
    sample, timestep, context = inputs(unet, 2)
    labels = torch.tensor([3, 800])
    for depth in depths(unet):
        pruned = idcompress.depth_skip(unet, depth)
        by_name = pruned(sample, timestep, context, class_labels=labels).sample
        assert torch.equal(by_name, pruned(sample, timestep, context, labels).sample)
        assert not torch.equal(by_name, pruned(sample, timestep, context, labels * 0).sample)


OTHER_BLOCKS = {
    "xl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    },
    "self_attention": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
    "simple_cross": {
        "down_block_types": ("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "norm_num_groups": 8,
    },
}


@pytest.mark.parametrize("name", OTHER_BLOCKS)
def test_other_kinds_of_blocks(name):
    unet = small(**OTHER_BLOCKS[name])
    arguments, counts = inputs(unet, 2), []
    conditions = {"text_embeds": torch.ones(2, 16), "time_ids": torch.ones(2, 6)} if name == "xl" else None
    for depth in depths(unet):
        pruned = idcompress.depth_skip(unet, depth)
        output = pruned(*arguments, added_cond_kwargs=conditions).sample
        assert output.shape == (2, 4, 8, 8)
        assert pruned.state_dict().keys() <= unet.state_dict().keys()
        counts.append(count_parameters(pruned)[0])
    assert counts == sorted(set(counts))
    assert torch.equal(output, unet(*arguments, added_cond_kwargs=conditions).sample)


# control residuals


def residuals_of(unet, batch=2, height=9, width=13):
    """Random residuals of the full control branch, 12 for Stable Diffusion, with the size of the skip they go to."""
    sizes, generator = [], torch.Generator().manual_seed(6)
    shape = unet_shape(unet)
    for layers, down in zip(shape.down_layers, shape.downsamplers, strict=True):
        sizes += [(height, width)] * (layers + (not sizes))
        if down:
            height, width = (height + 1) // 2, (width + 1) // 2
            sizes.append((height, width))
    return [
        torch.randn(batch, channels, *size, generator=generator)
        for channels, size in zip(shape.skip_channels, sizes, strict=True)
    ]


def controlled(unet, arguments, down, middle):
    return unet(*arguments, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample


def test_control_residuals(unet, cuts):
    arguments, residuals = inputs(unet, 2, 9, 13), residuals_of(unet)
    for depth in depths(unet)[:-1]:
        pruned, expected = cuts[depth], written_out(unet, depth, *arguments, residuals)
        output = controlled(pruned, arguments, residuals, torch.full((2, 16, 3, 4), 1e4))
        torch.testing.assert_close(output, expected, atol=2e-5, rtol=1e-5)
        assert (output - pruned(*arguments).sample).abs().max() > 1e-3
        other_surplus = [*residuals[:depth], *(torch.full((1, 3, 2, 2), 1e4) for _ in residuals[depth:])]
        assert torch.equal(controlled(pruned, arguments, other_surplus, torch.ones(7)), output)
        own = controlled(pruned, arguments, tuple(residuals[:depth]), torch.zeros(2, 1, 1, 1))
        assert torch.equal(own, output)  # a pruned branch's residuals
        positional = pruned(*arguments, None, None, None, None, None, residuals, torch.ones(5)).sample
        assert torch.equal(positional, output)
        with pytest.raises(ValueError, match=f"wants {depth} control residuals, got {depth - 1}"):
            controlled(pruned, arguments, residuals[: depth - 1], torch.zeros(1))
    twice = idcompress.depth_skip(cuts[depth], 2)
    expected = written_out(unet, 2, *arguments, residuals)
    torch.testing.assert_close(controlled(twice, arguments, residuals, torch.ones(9)), expected, atol=2e-5, rtol=1e-5)


# Kim et al., ACCV 2024, Tab. S7 (InstructPix2Pix): per cent of the U-Net's parameters, D01 .. D13.
OWN_PERCENT = (0.69, 1.25, 1.37, 2.85, 4.39, 5.06, 10.98, 16.71, 17.47, 9.17, 9.37, 9.37, 11.32)
SUM_PERCENT = (0.70, 1.95, 3.32, 6.17, 10.56, 15.62, 26.60, 43.31, 60.78, 69.95, 79.32, 88.68, 100.0)


def test_table_s7_of_the_paper():
    """The paper leaves the time embedding out, and the output head out of D01's own share only."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(in_channels=8, cross_attention_dim=768, sample_size=64)
    sums = [count_parameters(idcompress.depth_skip(unet, depth))[1] for depth in range(1, 14)]
    head = sum(p.numel() for m in (unet.conv_norm_out, unet.conv_out) for p in m.parameters())
    own = [after - before for before, after in zip([head, *sums], sums, strict=False)]
    assert [round(100 * n / sums[-1], 2) for n in own] == list(OWN_PERCENT)
    assert [round(100 * n / sums[-1], 2) for n in sums] == list(SUM_PERCENT)
    assert count_parameters(unet) == (859_532_484, 857_481_924)
    assert count_parameters(idcompress.depth_skip(unet, 9))[0] == 523_229_124
