"""Plans whose steps differ in depth alone, with zeros at the cut: every step is the cut network's."""

import dataclasses

import pytest
import torch

from idcompress.adapters.pipeline import with_copies
from idcompress.bench.translate import load_sampler, translate
from idcompress.core.cut import Cut
from idcompress.core.plan import Plan, Step
from idcompress.core.process import Prediction
from idcompress.core.sample import sample
from idcompress.errors import IdcError
from idcompress.tasks._task import initial_noise

GUIDANCE = {
    "ip2p": {"guidance_scale": 2.0, "image_guidance_scale": 1.3},
    "controlnet": {"guidance_scale": 2.0},
    "stablesr": {},
}
TIMESTEPS = (999, 700, 300, 3)


@pytest.fixture
def single(bench_of):
    """task -> a bench of one image over the model that all tests of this folder share."""

    def bench(task):
        whole = bench_of(task)
        return dataclasses.replace(whole, examples=whole.examples[:1], _conditioning={})

    return bench


def plan_of(task, *depths, **changes):
    return Plan(tuple(map(Step, TIMESTEPS, depths)), guidance=GUIDANCE[task], **changes)


def cut(bench, depth):
    return bench.model.pipeline if depth is None else bench.model.at(Cut("depth_skip", {"depth": depth}))


def by_hand(bench, plan):
    """Every step by the network that was cut to its depth, one after the other."""
    conditioning = bench.conditioning((0,))
    networks = {
        step.depth: bench.task.denoise(cut(bench, step.depth), conditioning, plan.guidance) for step in plan.steps
    }
    with torch.inference_mode():
        latents = sample(
            lambda state, step, cache: networks[step.depth](state, step, cache),
            initial_noise(bench.model.pipeline, bench.examples, 0),
            plan,
            bench.model.process,
            load_sampler(plan.sampler),
        )
        return bench.task.decode(bench.model.pipeline, latents, conditioning)


@pytest.mark.parametrize("task", GUIDANCE)
def test_a_step_that_names_a_depth_is_the_cut_networks(single, task):
    bench = single(task)
    mixed = plan_of(task, None, 5, 9, 5)
    found = bench.images(bench.model.pipeline, mixed, "")
    assert torch.equal(found, by_hand(bench, mixed))
    assert not torch.equal(found, bench.images(bench.model.pipeline, plan_of(task, None, 5, 9, 9), ""))
    assert not torch.equal(found, bench.images(bench.model.pipeline, plan_of(task, *[None] * 4), ""))


def test_one_depth_at_every_step_is_the_model_cut_to_it(single):
    bench, plain = single("ip2p"), plan_of("ip2p", *[None] * 4)
    for depth in (5, 9):
        found = bench.images(bench.model.pipeline, plan_of("ip2p", *[depth] * 4), "")
        assert torch.equal(found, bench.images(cut(bench, depth), plain, ""))


def test_a_cut_model_computes_less_at_the_steps_that_say_so(single):
    """A stored depth of 9 with steps of depth 5: those of its own networks, fine-tuned ones among them."""
    bench = single("ip2p")
    stored = with_copies(cut(bench, 9), ["unet"])  # as for fine-tuning
    for parameter in stored.unet.parameters():
        parameter.data *= 1.02
    shallow = bench.images(stored, plan_of("ip2p", *[5] * 4), "")
    further = bench.model.cut_further(stored, 5)
    assert torch.equal(shallow, bench.images(further, plan_of("ip2p", *[None] * 4), ""))
    assert not torch.equal(shallow, bench.images(bench.model.pipeline, plan_of("ip2p", *[5] * 4), ""))
    assert not torch.equal(shallow, bench.images(stored, plan_of("ip2p", *[9] * 4), ""))


def test_a_tree_of_depths_gives_what_each_plan_gives(single):
    bench = single("ip2p")
    plans = [plan_of("ip2p", *depths) for depths in ((9, 9, 9, 9), (9, 9, 5, 9), (9, 5, 5, None), (None, 9, 9, 9))]
    found = {plan: images for plan, images, _ in bench.tree(bench.model.pipeline, plans, (0,))}
    assert found.keys() == set(plans)
    for plan, images in found.items():
        assert torch.equal(images, bench.images(bench.model.pipeline, plan, ""))
    assert sum(calls for *_, calls in bench.tree(bench.model.pipeline, plans, (0,))) == 4 + 2 + 3 + 4


def test_a_depth_that_the_model_has_not_is_one_clear_line(single):
    bench = single("ip2p")
    plan = Plan((Step(999), Step(300, 14)), guidance=GUIDANCE["ip2p"])
    with pytest.raises(IdcError, match="depth must be between 1 and 13 for this U-Net, got 14") as caught:
        bench.images(bench.model.pipeline, plan, "")
    assert "\n" not in str(caught.value)


def test_a_depth_that_cannot_be_had_is_one_clear_line(single):
    bench = single("ip2p")
    with pytest.raises(IdcError, match="timestep 999 names depth 9, which cannot be had here"):
        translate(bench.task, bench.model.pipeline, bench.examples, plan_of("ip2p", *[9] * 4))


# What a task may change about sampling.


def test_a_task_decides_on_the_start_and_on_every_prediction(single):
    """A mask on its left half, whose picture is known, and a start at another noise."""
    bench, levels = single("ip2p"), []

    class Masked(type(bench.task)):
        def start(self, pipeline, examples, level, seed):
            levels.append(level)
            return super().start(pipeline, examples, level, seed + 5)

        def project(self, prediction, level, conditioning):
            levels.append(level)
            known = conditioning["image"][..., :4]
            left = prediction.pred_original_sample[..., 4:]
            return Prediction(torch.cat([known, left], dim=-1), prediction.pred_epsilon)

        def decode(self, pipeline, latents, conditioning):
            assert torch.equal(latents[..., :4], conditioning["image"][..., :4])
            return super().decode(pipeline, latents, conditioning)

    masked, plan = dataclasses.replace(bench, task=Masked()), plan_of("ip2p", *[None] * 4)
    found = masked.images(bench.model.pipeline, plan, "")
    level = bench.model.process.level
    assert levels == [level(999), *map(level, TIMESTEPS)]
    assert not torch.equal(found, bench.images(bench.model.pipeline, plan, ""))
    ((_, tree, _),) = masked.tree(bench.model.pipeline, [plan], (0,))
    assert torch.equal(tree, found)
