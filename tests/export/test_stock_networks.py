"""A cut network as a stock one: exact where the condition says, at every depth and for other widths and groups."""

import json

import pytest
import tiny_random
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from idcompress.adapters.controlnet import prune_controlnet
from idcompress.adapters.cut_models import DepthSkipControlNetModel, DepthSkipUNet2DConditionModel, named
from idcompress.adapters.unet import depth_skip, unet_shape
from idcompress.core.skip_plan import skip_plan
from idcompress.errors import IdcError
from idcompress.export import stock_form
from idcompress.pruning import depth_skip as pruning

DEPTHS = range(1, 13)


def unet(**changes):
    torch.manual_seed(0)
    up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    config = tiny_random.UNET | {"in_channels": 4, "up_block_types": up} | changes
    return UNet2DConditionModel(**config).eval()


NETWORKS = {
    "like Stable Diffusion": {},
    "equal widths": {"block_out_channels": (16, 16, 16, 16)},
    "one group": {"norm_num_groups": 1},
    "settings per level": {
        "attention_head_dim": (2, 4, 8, 8),
        "transformer_layers_per_block": (1, 2, 1, 1),
        "layers_per_block": 1,
        "use_linear_projection": True,
    },
}


@pytest.fixture(scope="module", params=NETWORKS)
def full(request):
    return unet(**NETWORKS[request.param])


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(1, 4, 8, 8, generator=generator).to(dtype)
    return sample, torch.tensor(400), torch.randn(1, 3, 16, generator=generator).to(dtype)


def params(model):
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def test_every_depth_has_an_equal_stock_model(full):
    """Its own shape where the condition holds, a larger one's with zeros elsewhere; bit for bit."""
    last = unet_shape(full).full_depth
    like_sd = full.config.block_out_channels == tiny_random.WIDTHS and full.config.norm_num_groups == 8
    for depth in range(1, last) if like_sd else (1, 3, 4, 7):
        cut = depth_skip(full, depth)
        host = stock_form.host_depth(cut)
        if host is None:
            assert full.config.norm_num_groups == 1
            continue
        stock = stock_form.stock_unet(cut, host)
        assert type(stock) is UNet2DConditionModel
        assert "depth" not in stock.config
        assert torch.equal(stock(*inputs()).sample, cut(*inputs()).sample), (depth, host)
        assert (stock_form.stock_obstacle(cut, depth) is None) == (host == depth)
        assert (params(stock) == params(cut)) == (host == depth)
    assert stock_form.stock_unet(full, last) is full


@pytest.mark.parametrize(
    ("changes", "exact"),
    [
        ({}, {1, 2, 5, 8, 9, 10, 11, 12}),
        (NETWORKS["equal widths"], set(DEPTHS)),
        (NETWORKS["one group"], set()),
    ],
)
def test_the_condition(changes, exact):
    model = unet(**changes)
    assert {d for d in DEPTHS if stock_form.stock_obstacle(model, d) is None} == exact
    assert stock_form.stock_obstacle(model, 13) is None


@torch.no_grad()
def test_without_the_condition_the_stock_shape_is_wrong(full):
    """The condition refuses nothing that would be exact: elsewhere the plain shape does not take the weights or run."""
    refused = [d for d in range(1, unet_shape(full).full_depth) if stock_form.stock_obstacle(full, d)][-4:]
    for depth in refused:
        cut = depth_skip(full, depth)
        try:
            output = stock_form.stock_unet(cut, depth)(*inputs()).sample
        except (RuntimeError, ValueError):
            continue
        assert not torch.equal(output, cut(*inputs()).sample), depth


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_exact_too(dtype):
    model = unet().to(dtype)
    for depth in (2, 8, 9):
        cut = depth_skip(model, depth)
        stock = stock_form.stock_unet(cut, depth)
        assert stock.dtype == dtype
        assert torch.equal(stock(*inputs(dtype)).sample, cut(*inputs(dtype)).sample)


def test_the_original_weights_stay_as_they_are():
    cut = depth_skip(unet(), 9)
    before = {name: weight.clone() for name, weight in cut.state_dict().items()}
    stock = stock_form.stock_unet(cut, 9)
    first = stock.up_blocks[0].resnets[0]
    hidden = cut.mid_block.hidden_channels
    assert not first.norm1.weight[:hidden].any() and not first.conv_shortcut.weight[:, :hidden].any()
    assert all(torch.equal(weight, before[name]) for name, weight in cut.state_dict().items())


def branch():
    torch.manual_seed(1)
    shape = {k: v for k, v in tiny_random.UNET.items() if k != "sample_size"}
    made = ControlNetModel(in_channels=4, conditioning_embedding_out_channels=(4, 8, 16), **shape)
    for block in (*made.controlnet_down_blocks, made.controlnet_mid_block):
        torch.nn.init.normal_(block.weight, std=0.1)
    return made.eval()


@torch.no_grad()
def test_control_branches_at_every_depth():
    full_unet, full_branch = unet(), branch()
    condition = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))

    def controlled(network, control):
        down, middle = control(*inputs(), controlnet_cond=condition, return_dict=False)
        return network(*inputs(), down_block_additional_residuals=down, mid_block_additional_residual=middle).sample

    for depth in DEPTHS:
        cut = depth_skip(full_unet, depth)
        cut_branch = prune_controlnet(full_branch, skip_plan(unet_shape(full_unet), depth))
        stock = stock_form.stock_unet(cut, stock_form.host_depth(cut))
        short = stock_form.stock_controlnet(cut_branch, len(stock.config.block_out_channels))
        assert type(short) is ControlNetModel
        wanted = controlled(cut, cut_branch)
        assert torch.equal(controlled(stock, short), wanted), depth
        assert not torch.equal(cut(*inputs()).sample, wanted)
        assert params(short) < params(full_branch)
    assert stock_form.stock_controlnet(full_branch, 4) is full_branch


@torch.no_grad()
def test_exported_networks_are_cut_further():
    """From the levels that a stock, hosted or own form has, as if from the full model; never back up."""
    full = {"unet": unet(), "controlnet": branch()}
    condition = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))

    def controlled(parts, guess_mode):
        arguments = {"controlnet_cond": condition, "guess_mode": guess_mode, "return_dict": False}
        down, middle = parts["controlnet"](*inputs(), **arguments)
        controls = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return parts["unet"](*inputs(), **controls).sample

    for depth, host, present, further in ((9, 9, 9, 8), (8, 8, 8, 5), (7, 8, 8, 7), (7, None, 7, 5)):
        exported = full | pruning.apply(full, pruning.chosen(depth))
        if host is not None:
            exported["unet"] = stock_form.stock_unet(exported["unet"], host)
            levels = len(exported["unet"].config.block_out_channels)
            exported["controlnet"] = stock_form.stock_controlnet(exported["controlnet"], levels)
        assert pruning.levels(exported) == present
        assert pruning.apply(exported, pruning.chosen(present)) == {}
        with pytest.raises(IdcError, match=f"between 1 and {present} for this U-Net, got {present + 1}"):
            pruning.apply(exported, pruning.chosen(present + 1))
        again, direct = (parts | pruning.apply(parts, pruning.chosen(further)) for parts in (exported, full))
        assert params(again["unet"]) == params(direct["unet"])
        assert torch.allclose(controlled(again, False), controlled(direct, False), atol=1e-5)
        # stock branches have forgotten how many residuals the full one had
        assert torch.allclose(controlled(again, True), controlled(direct, True), atol=1e-5) == (host is None)


def test_cut_networks_save_and_load_under_their_own_class(tmp_path):
    cut = named(depth_skip(unet(), 7))
    assert type(cut) is DepthSkipUNet2DConditionModel
    cut.save_pretrained(tmp_path / "unet")
    again = DepthSkipUNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert type(again) is DepthSkipUNet2DConditionModel and again.config.depth == 7
    weights = cut.state_dict()
    assert weights.keys() == again.state_dict().keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in again.state_dict().items())

    pruned = named(prune_controlnet(branch(), skip_plan(unet_shape(unet()), 7)))
    pruned.save_pretrained(tmp_path / "controlnet")
    again = DepthSkipControlNetModel.from_pretrained(tmp_path / "controlnet")
    condition = torch.rand(1, 3, 32, 32)
    for guess_mode in (False, True):
        ours, theirs = (
            model(*inputs(), controlnet_cond=condition, guess_mode=guess_mode, return_dict=False)[0]
            for model in (pruned, again)
        )
        assert len(ours) == 7
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_configurations_of_full_size_models(shared):
    """Against configurations that were measured to be exact, at Stable Diffusion 1.5's size."""
    known = json.loads((shared / "fixtures/depth_skip/vanilla_configs.json").read_text())
    config = known["unet_ip2p_in8"]["D12"] | {"mid_block_type": "UNetMidBlock2DCrossAttn", "layers_per_block": 2}
    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(config)
    wanted = {int(name[1:]): entries for name, entries in known["unet_ip2p_in8"].items()}
    assert {d for d in DEPTHS if stock_form.stock_obstacle(model, d) is None} == set(wanted)
    for depth, entries in wanted.items():
        stock = stock_form.stock_unet(depth_skip(model, depth), depth)
        made = {name: list(v) if isinstance(v, tuple) else v for name, v in stock.config.items() if name in entries}
        assert made == entries
    sizes = {depth: params(stock_form.stock_unet(depth_skip(model, depth), depth)) for depth in (8, 9)}
    assert sizes == {8: 373_403_844, 9: 523_229_124}
