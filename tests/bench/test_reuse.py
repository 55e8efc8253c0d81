"""Steps that take something from the steps before them: hidden states, guidance differences, side networks' outputs."""

import threading

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from idcompress.adapters.deep_features import call_unet, giving
from idcompress.adapters.unet import depth_skip
from idcompress.bench.costs import Work, costs, network_calls
from idcompress.bench.translate import networks_of, sampling
from idcompress.core.plan import Plan, Step
from idcompress.core.reuse import Known, Networks, computed, computed_step
from idcompress.core.sample import Beginnings, sample

GUIDANCE = {
    "ip2p": {"guidance_scale": 2.0, "image_guidance_scale": 1.3},
    "controlnet": {"guidance_scale": 2.0},
    "stablesr": {},
}
TIMESTEPS = (999, 700, 300, 3)


def plan_of(task, depths, fill="zero", **changes):
    steps = (Step(t, d, **changes if t != 999 else {}) for t, d in zip(TIMESTEPS, depths, strict=True))
    return Plan(tuple(steps), fill=fill, guidance=GUIDANCE[task])


def latents(bench, plan, positions=(0, 1), **options):
    """The plan's last sample by the path of steps that may reuse, whatever the plan."""
    arguments = sampling(
        bench.task,
        bench.model.pipeline,
        [bench.examples[position] for position in positions],
        plan,
        seed=0,
        conditioning=bench.conditioning(tuple(positions)),
        at_depth=bench.at_depth(bench.model.pipeline),
        depths=(3, 5, 7),
    )
    with torch.inference_mode():
        return sample(plan=plan, **arguments, **options)


@pytest.mark.parametrize("task", GUIDANCE)
def test_zeros_given_as_deep_features_are_the_cut_network(bench_of, task):
    """The boundary argument: zeros bit for bit what depth-skip feeds, the true hidden state the whole model."""
    bench = bench_of(task)
    parts = bench.task.parts(bench.model.pipeline, bench.conditioning((0, 1)), GUIDANCE[task])
    timestep, noise = torch.tensor(300), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    side = None if parts.side is None else parts.side(noise, timestep, parts.passes)
    whole = bench.model.pipeline.unet
    with torch.inference_mode():
        for depth in (1, 4, 7, 12):
            pipeline = bench.at_depth(bench.model.pipeline)(depth)
            cut = bench.task.parts(pipeline, bench.conditioning((0, 1)), GUIDANCE[task])
            gives = bench.task.parts(_with(bench, giving(whole, [depth])), bench.conditioning((0, 1)), GUIDANCE[task])
            full, hidden = gives.outputs(noise, timestep, parts.passes, side, None)
            plain, _ = cut.outputs(noise, timestep, parts.passes, side, None)
            zeros, _ = cut.outputs(noise, timestep, parts.passes, side, torch.zeros_like(hidden[depth]))
            true, _ = cut.outputs(noise, timestep, parts.passes, side, hidden[depth])
            assert all(map(torch.equal, plain, zeros))
            assert all(map(torch.equal, true, full))
            assert not torch.equal(plain[0], full[0])


def _with(bench, unet):
    from idcompress.adapters.pipeline import with_components

    return with_components(bench.model.pipeline, {"unet": unet})


@pytest.mark.parametrize("task", GUIDANCE)
def test_zero_fill_is_depth_skip_bit_for_bit(bench_of, task):
    bench = bench_of(task)
    plan = plan_of(task, (7, 5, None, 5))
    cut = bench.images(bench.model.pipeline, plan, "")
    assert torch.equal(cut, bench.images(bench.model.pipeline, plan, "", depths=(5, 7)))


@pytest.mark.parametrize("task", GUIDANCE)
@pytest.mark.parametrize("fill", ["hold", "linear"])
def test_full_steps_are_todays_run_bit_for_bit(bench_of, task, fill):
    bench = bench_of(task)
    plan = Plan.over(TIMESTEPS, guidance=GUIDANCE[task])
    today = bench.images(bench.model.pipeline, plan, "")
    filled = Plan(plan.steps, fill=fill, guidance=plan.guidance)
    assert torch.equal(today, bench.images(bench.model.pipeline, filled, "", depths=(3, 5, 7)))


@pytest.mark.parametrize("task", GUIDANCE)
def test_a_repeated_timestep_holds_what_the_whole_model_says(bench_of, task):
    """At an equal sample and timestep the held state is the true one, so that a shallow step equals a full one."""
    bench, guidance = bench_of(task), GUIDANCE[task]
    arguments = sampling(
        bench.task,
        bench.model.pipeline,
        bench.examples,
        plan_of(task, (None, 5, 5, 5), "hold"),
        seed=0,
        conditioning=bench.conditioning((0, 1)),
        at_depth=bench.at_depth(bench.model.pipeline),
    )
    with torch.inference_mode():
        output, cache = arguments["denoise"](arguments["start"], Step(500), None)
        again, after = arguments["denoise"](arguments["start"], Step(500, 5, refresh=False), cache)
    assert torch.equal(output, again)
    assert cache is not after
    assert (
        cache.known.depths
        == (13,) * networks_of(bench.task, bench.model.pipeline, Plan.over([1], guidance=guidance)).passes
    )


def test_linear_goes_on_as_the_last_two_states_did(bench_of):
    bench = bench_of("ip2p")
    hold, linear = (latents(bench, plan_of("ip2p", (None, None, 5, 5), fill)) for fill in ("hold", "linear"))
    once = [latents(bench, plan_of("ip2p", (None, 5, 5, 5), fill)) for fill in ("hold", "linear")]
    assert torch.equal(*once)  # one state leads nowhere
    assert not torch.equal(hold, linear)


@pytest.mark.parametrize("task", ["ip2p", "controlnet"])
def test_guidance_passes(bench_of, task):
    bench, none = bench_of(task), (None,) * 4
    every = latents(bench, plan_of(task, none))
    held, text = (latents(bench, plan_of(task, none, passes=passes)) for passes in ("held", "text"))
    assert not torch.equal(held, every)
    assert not torch.equal(text, every)
    scales = dict.fromkeys(GUIDANCE[task], 1.0)
    unguided = Plan(tuple(map(Step, TIMESTEPS)), guidance=scales)
    only = Plan(tuple(Step(t, passes="text") for t in TIMESTEPS), guidance=GUIDANCE[task])
    assert torch.allclose(latents(bench, unguided), latents(bench, only), atol=1e-5)


@pytest.mark.parametrize("task", ["controlnet", "stablesr"])
def test_side_networks_are_held_and_not_called(bench_of, monkeypatch, task):
    bench, calls = bench_of(task), []
    side = bench.task.networks(bench.model.pipeline)[1]
    handle = side.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        fresh = latents(bench, plan_of(task, (None,) * 4))
        assert len(calls) == 4
        held = latents(bench, plan_of(task, (None,) * 4, refresh=False))
        assert len(calls) == 5
    finally:
        handle.remove()
    assert not torch.equal(fresh, held)


@pytest.mark.parametrize("task", GUIDANCE)
def test_images_do_not_depend_on_their_batch(bench_of, task):
    bench, plan = bench_of(task), plan_of(task, (None, 5, 3, 7), "linear", passes="held", refresh=False)
    together = latents(bench, plan)
    for position in (0, 1):
        assert torch.allclose(together[position], latents(bench, plan, (position,))[0], atol=1e-4)


def test_plans_that_begin_alike_share_their_caches(bench_of):
    bench, beginnings = bench_of("ip2p"), Beginnings()
    plans = [plan_of("ip2p", depths, "linear") for depths in ((None, 5, 5, 3), (None, 5, 3, 5), (None, 5, 5, 7))]
    alone = [latents(bench, plan, (0,)) for plan in plans]
    shared = [latents(bench, plan, (0,), beginnings=beginnings) for plan in plans]
    assert all(map(torch.equal, alone, shared))


def test_threads_do_not_mix(bench_of):
    bench, plan = bench_of("ip2p"), plan_of("ip2p", (None, 5, 3, 5), "linear")
    alone = [latents(bench, plan, (position,)) for position in (0, 1)]
    found = {}
    threads = [threading.Thread(target=lambda p=p: found.update({p: latents(bench, plan, (p,))})) for p in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(alone[position], found[position]) for position in (0, 1))


def test_hidden_states_come_from_the_call_alone():
    """A module keeps nothing: a call outside `call_unet` notes nothing anywhere."""
    import tiny_random

    unet = tiny_random.unet(4)
    gives, inputs = giving(unet, [2, 5]), (torch.randn(1, 4, 8, 8), torch.tensor(3), torch.randn(1, 3, 16))
    with torch.no_grad():
        output, hidden = call_unet(gives, *inputs)
        assert torch.equal(output.sample, gives(*inputs).sample)
        assert torch.equal(output.sample, unet(*inputs).sample)
        assert sorted(hidden) == [2, 5]
        assert giving(unet, [5, 2]) is gives
        assert giving(unet, [13]) is unet
        assert sorted(call_unet(giving(depth_skip(unet, 4), [2, 5]), *inputs)[1]) == [2]


# what is computed, whatever a step says


def test_what_no_step_has_left_is_computed():
    networks = Networks(13, 3, True)
    first, known = computed_step(Step(999, 5, "held", False), Known(), networks, "hold")
    assert first == Step(999)
    assert computed_step(Step(9, 5, "held", False), known, networks, "hold")[0] == Step(9, 5, "held", False)
    # zeros come from nowhere, so that they may be first; the side network then knows what that depth needs alone
    zeros, known = computed_step(Step(999, 5), Known(), networks, "zero")
    assert zeros == Step(999, 5)
    assert computed_step(Step(9, 7, refresh=False), known, networks, "zero")[0] == Step(9, 7)
    assert computed_step(Step(9, 5, refresh=False), known, networks, "zero")[0] == Step(9, 5, refresh=False)
    # the text pass alone leaves nothing for the others
    _, known = computed_step(Step(999, None, "text"), Known(), networks, "hold")
    assert computed_step(Step(9, 5), known, networks, "hold")[0] == Step(9)
    assert computed_step(Step(9, 5, "text"), known, networks, "hold")[0] == Step(9, 5, "text")
    # nothing beside the U-Net to hold, one pass to compute, and no more levels than are stored
    assert computed_step(Step(9, 13, "held", False), Known(), Networks(9, 1, False), "zero")[0] == Step(9)


@pytest.mark.parametrize("task", GUIDANCE)
def test_multiply_accumulates_of_a_plan_are_those_that_its_steps_take(bench_of, task):
    bench, pipeline = bench_of(task), bench_of(task).model.pipeline
    plan = Plan(
        (Step(999, 5, refresh=False), Step(700, 7), Step(300, 5, "held", False), Step(3, None, "text")),
        fill="linear",
        guidance=GUIDANCE[task],
    )
    work = Work(bench, pipeline)
    with FlopCounterMode(display=False) as counter:
        latents(bench, plan, (0,))
    assert work.of(plan, "gmacs_with_attention") == pytest.approx(counter.get_total_flops() / 2e9, rel=1e-6)
    really = computed(plan, networks_of(bench.task, pipeline, plan))
    assert really.steps[0] == Step(999)
    assert torch.equal(latents(bench, plan), latents(bench, really))
    if task != "controlnet":  # the rows are made of these sums whatever the task
        return
    original = Plan.over(TIMESTEPS, guidance=GUIDANCE[task])
    rows = costs(bench, pipeline, plan, original, latency=False)
    assert rows["network_calls"]["compressed"] == network_calls(really)
    ratio = rows["gmacs"]["ratio"] * rows["network_calls"]["ratio"]
    assert ratio == pytest.approx(work.of(plan) / work.of(original))
