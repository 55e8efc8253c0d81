"""A stub at the cut: where the hidden state is linear in the skip it is found, and it is stored with the cut."""

import copy
import json
from pathlib import Path

import pytest
import tiny_random
import torch

from idcompress import Recipe, depth_skip, load_pipeline
from idcompress.adapters.cut_models import named
from idcompress.adapters.stub import fit_stub
from idcompress.adapters.unet import StubHidden
from idcompress.core.cut import Cut
from idcompress.costs.macs import unet_macs
from idcompress.costs.parameters import count_parameters
from idcompress.errors import IdcError
from idcompress.export.stock_form import host_depth, stock_obstacle
from idcompress.pruning import depth_skip as method


@pytest.fixture(scope="module")
def unet():
    return tiny_random.unet()


def inputs(seed, size=8):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, 8, size, size, generator=generator),
        torch.tensor([100 + seed, 900 - seed]),
        torch.randn(2, 5, 16, generator=generator),
    )


def runs(number, size=8):
    return [lambda network, seed=seed: network(*inputs(seed, size)) for seed in range(number)]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("depth", [3, 7])
def test_a_linear_hidden_state_is_found(unet, depth, kernel):
    """The whole model's deep end is replaced by a known convolution of what the encoder ends on at the cut."""
    zeros, cut = depth_skip(unet, depth), depth_skip(unet, depth, stub_kernel=kernel)
    assert torch.equal(cut(*inputs(0)).sample, zeros(*inputs(0)).sample)  # until it is fitted
    whole = depth_skip(unet, depth, stub_kernel=kernel)
    for parameter in whole.mid_block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    explained = fit_stub(whole, cut, runs(24, size=16))
    assert explained > 0.99
    wanted = whole(*inputs(99)).sample
    error, before = ((network(*inputs(99)).sample - wanted).norm() for network in (cut, zeros))
    assert error < 0.05 * before
    weight, own = whole.mid_block.conv.weight, cut.mid_block.conv.weight
    assert (own - weight).norm() < 0.2 * weight.norm()


def test_the_whole_models_hidden_state_is_predicted_better_than_by_zeros(unet):
    """On inputs that the fit has not seen."""
    cut = depth_skip(unet, 7, stub_kernel=1)
    assert 0 < fit_stub(unet, cut, runs(6)) <= 1
    wanted, zeros = unet(*inputs(77)).sample, depth_skip(unet, 7)
    errors = [(network(*inputs(77)).sample - wanted).square().mean() for network in (cut, zeros)]
    assert errors[0] < errors[1]


def test_it_is_counted_saved_and_cut_further(unet, tmp_path):
    zeros, cut = depth_skip(unet, 7), depth_skip(unet, 7, stub_kernel=3)
    torch.nn.init.normal_(cut.mid_block.conv.weight)
    conv = cut.mid_block.conv
    own = conv.weight.numel() + conv.bias.numel()
    assert count_parameters(cut)[0] == count_parameters(zeros)[0] + own
    macs = (unet_macs(network, encoder_tokens=5)[0] for network in (cut, zeros))
    side = 8 >> 2  # two downsamplers lie above the cut
    assert next(macs) - next(macs) == pytest.approx(conv.weight.numel() * side * side / 1e9, rel=1e-6)

    named(copy.deepcopy(cut)).save_pretrained(tmp_path)
    again = type(named(copy.deepcopy(cut))).from_pretrained(tmp_path)
    assert isinstance(again.mid_block, StubHidden)
    assert torch.equal(again(*inputs(1)).sample, cut(*inputs(1)).sample)

    deeper = depth_skip(cut, 4)
    assert deeper.config.stub_kernel is None
    assert torch.equal(deeper(*inputs(1)).sample, depth_skip(unet, 4)(*inputs(1)).sample)
    assert "convolution" in stock_obstacle(cut, 7)
    assert host_depth(cut) is None
    assert stock_obstacle(deeper, 4) == stock_obstacle(depth_skip(unet, 4), 4)


def test_wrong_stubs_are_refused(unet):
    for choice in ({"depth": 7, "fill": "stub"}, {"depth": 7, "stub_kernel": 1}, {"depth": 7, "fill": "ones"}):
        with pytest.raises(IdcError, match="at most a stub"):
            method.apply({"unet": unet}, Cut("depth_skip", choice))
    with pytest.raises(IdcError, match="must be 1 or 3, got 5"):
        method.apply({"unet": unet}, method.chosen(7, fill="stub", stub_kernel=5))


@pytest.mark.parametrize("task", ["ip2p", "controlnet", "stablesr"])
def test_the_depth_search_fits_it_and_stores_it(idc, random_model, task):
    """Given a depth: the recipe has the cut and its weights, which later stages and an export use."""
    common = (f"task={task}", f"model.path={random_model(task)}", "depth=7", "prune.fill=stub", "prune.stub_kernel=3")
    result = idc("depth-search", *common, "depth_search.num_samples=1", "hydra.run.dir=run")
    assert result.code == 0, result.err
    recipe = Recipe.load("run")
    assert recipe.cut == Cut("depth_skip", {"depth": 7, "fill": "stub", "stub_kernel": 3})
    assert list(recipe.weights) == ["unet"]
    assert recipe.searched_photographs()
    cut = load_pipeline(recipe)
    stub = cut.unet.mid_block
    assert isinstance(stub, StubHidden) and stub.conv.weight.abs().sum() > 0
    result = idc("export", "recipe=run/recipe.json", f"task={task}", "export.path=out")
    assert result.code == 0, result.err
    assert "a convolution stands at the cut" in result.out or task == "stablesr"
    again = load_pipeline("out").unet.state_dict()
    assert all(torch.equal(again[name], value) for name, value in cut.unet.state_dict().items())
    if task == "ip2p":
        result = idc("tsopt", *common, "recipe=none")
        assert result.code == 2 and "run idc depth-search with the same keys first" in result.err
        assert json.loads(Path("run/recipe.json").read_text())["cut"]["fill"] == "stub"
