"""Layers that a step passes by: what is left of them, and who keeps count."""

import copy

import pytest
import torch
from tiny_random import stablesr_pipeline

from idcompress.adapters.layers import PassedBy, check_layers, names_of_layers, passing_by
from idcompress.adapters.unet import depth_skip, sharing
from idcompress.core.plan import Plan, Step
from idcompress.core.reuse import Networks, computed
from idcompress.errors import IdcError


@pytest.fixture(scope="module")
def pipeline():
    return stablesr_pipeline()


def called(unet):
    """A StableSR U-Net on random latents, text and features of the structure encoder."""
    generator = torch.Generator().manual_seed(1)
    sample, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 3, 8, generator=generator)
    features = {side: torch.randn(2, 8, side, side, generator=generator) for side in (1, 2, 4, 8)}
    with torch.inference_mode():
        return unet(sample, torch.tensor(500), text, structure_features=features, return_dict=False)[0]


def without_branches(unet, names):
    """The same network with residual branches that end on zeros."""
    changed = copy.deepcopy(unet)
    for name in names:
        layer = changed.get_submodule(name)
        if hasattr(layer, "proj_out"):
            ends = [layer.proj_out]
        else:
            ends = [layer.conv2]
            spade = layer.spade  # what comes after the last convolution: norm(h) (1 + gamma) + beta
            ends += [spade.norm, spade.beta]
        for end in ends:
            torch.nn.init.zeros_(end.weight)
            torch.nn.init.zeros_(end.bias)
    return changed


def test_a_layer_that_is_passed_by_adds_nothing(pipeline):
    names = names_of_layers(pipeline.unet)
    assert len(names) == 22 + 16  # residual blocks and transformers of Stable Diffusion's layout
    for skip in ([names[0]], [names[-1]], list(names[3::4]), [name for name in names if "attentions" in name]):
        found = called(passing_by(pipeline, skip).unet)
        torch.testing.assert_close(found, called(without_branches(pipeline.unet, skip)), rtol=1e-5, atol=1e-5)
        assert not torch.equal(found, called(pipeline.unet))


def test_parameters_are_shared_and_the_pipeline_stays_as_it_was(pipeline):
    before, names = called(pipeline.unet), names_of_layers(pipeline.unet)
    passed = passing_by(pipeline, names[:5]).unet
    own = {id(parameter) for parameter in pipeline.unet.parameters()}
    assert all(id(parameter) in own for parameter in passed.parameters())
    assert sum(isinstance(module, PassedBy) for module in passed.modules()) == 5
    assert torch.equal(called(pipeline.unet), before)
    assert passing_by(pipeline, ()) is pipeline


def test_names_hold_in_a_cut(pipeline):
    """Layers keep their names there, and those that the cut dropped are passed by anyway."""
    names = names_of_layers(pipeline.unet)
    cut = depth_skip(sharing(pipeline.unet), 5)
    kept = names_of_layers(cut)
    assert {*kept} < {*names}
    deep = next(name for name in names if name not in kept)
    holder = copy.copy(pipeline)
    holder.unet = cut
    assert torch.equal(called(passing_by(holder, [deep, kept[0]]).unet), called(passing_by(holder, [kept[0]]).unet))


def test_an_unknown_layer_is_named(pipeline):
    check_layers(pipeline.unet, names_of_layers(pipeline.unet))
    with pytest.raises(IdcError, match=r"passes 'conv_in' by, which is no such layer.*it has 38, down_blocks"):
        check_layers(pipeline.unet, ["conv_in"])


def test_a_step_keeps_its_layers():
    step = Step(500, skip=("b", "a", "a"))
    assert step.skip == ("a", "b") and not step.is_whole
    assert Step.from_json(step.to_json()) == step and step.to_json()["skip"] == ["a", "b"]
    assert "skip" not in Step(500).to_json()
    plan = Plan.over([900, 500], skip=[(), ("a",)])
    assert not plan.is_plain and plan.all_whole.is_plain and Plan.from_json(plan.to_json()) == plan
    assert computed(plan, Networks(5, 1, False)).steps == plan.steps
    for wrong in ("a", ["a", 1], [""]):
        with pytest.raises(ValueError, match="a step's skip must be a list of layers' names"):
            Step.from_json({"timestep": 5, "skip": wrong})
