"""Gradients to timesteps against differences, and lists that they find, on clusters whose network is a formula."""

import dataclasses
import math

import pytest
import torch

from idcompress import registry
from idcompress.core.ddim import without_cache
from idcompress.core.learned_list import level_at, run_over, spread
from idcompress.core.plan import Plan
from idcompress.core.process import RectifiedFlow, VariancePreserving, scaled_linear_alphas_cumprod
from idcompress.core.sample import sample
from idcompress.core.timestep_search import uniform_timesteps
from idcompress.types import ScheduleRequest

from .test_lists import _output, clusters

VP, FLOW = VariancePreserving(scaled_linear_alphas_cumprod().double()), RectifiedFlow()
SAMPLERS = ("ddim", "dpm_solver", "unipc")


def network(process):
    def denoise(state, timestep):
        level = process.level(timestep.item())
        x0 = clusters(state, level)
        return state - x0 if process is FLOW and level.signal == 0 else _output(x0, state, level, process)

    return without_cache(denoise)


def sampler_of(name):
    return registry.load("sampler", name).SAMPLER


def start():
    return torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("process", [VP, FLOW], ids=["vp", "flow"])
def test_at_whole_timesteps_a_run_is_the_loop_s(process, name):
    whole = [process.max_timestep, 610, 350, 90]
    wanted = sample(network(process), start(), Plan.over(whole), process, sampler_of(name))
    found = run_over(torch.tensor(whole, dtype=torch.float64), network(process), start(), process, sampler_of(name))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("process", [VP, FLOW], ids=["vp", "flow"])
def test_gradients_are_differences(process, name):
    nodes = torch.tensor([process.max_timestep, 640.3, 350.6, 90.45], dtype=torch.float64, requires_grad=True)
    wanted = start().tanh()

    def loss(at):
        return (run_over(at, network(process), start(), process, sampler_of(name)) - wanted).square().mean()

    loss(nodes).backward()
    assert nodes.grad[0] == 0
    for place in (1, 2, 3):
        shift = torch.zeros_like(nodes)
        shift[place] = 0.02
        with torch.no_grad():
            difference = (loss(nodes + shift) - loss(nodes - shift)) / 0.04
        assert nodes.grad[place].item() == pytest.approx(difference.item(), rel=1e-4), place
        assert abs(difference) > 1e-7


def test_levels_between_whole_timesteps_keep_what_a_process_promises():
    for timestep in (0, 0.3, 517.25, 998.999, 999):
        level = level_at(VP, timestep)
        assert level.signal**2 + level.noise**2 == pytest.approx(1, rel=1e-12)
        below, above = VP.level(math.floor(timestep)), VP.level(math.ceil(timestep))
        assert below.noise - 1e-12 <= level.noise <= above.noise + 1e-12
    assert level_at(VP, 40) == VP.level(40) and level_at(FLOW, 40.5) == FLOW.level(40.5)


def test_equal_logits_are_even_steps_that_begin_at_the_noisiest():
    torch.testing.assert_close(spread(torch.zeros(4), VP), torch.tensor([999, 749.25, 499.5, 249.75]))
    uneven = spread(torch.tensor([0.5, -2.0, 3.0]), VP)
    assert uneven[0] == 999 and (uneven.diff() < 0).all() and uneven[-1] > 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_learned_is_no_worse_than_uniform_under_the_sampler_in_use(name):
    """And better than both of the lists that it holds it against, on the images that it learns on."""
    final = sample(network(VP), start(), Plan.over(uniform_timesteps(60, VP)), VP, sampler_of(name))
    scored = {}

    def score(timesteps):
        made = sample(network(VP), start(), Plan.over(timesteps), VP, sampler_of(name))
        scored[tuple(timesteps)] = -(made - final).square().mean().log10().item()
        return scored[tuple(timesteps)]

    calls = []

    def batches():
        for half in (slice(0, 2), slice(2, 4)):
            calls.append(half)
            yield network(VP), start()[half], final[half]

    request = ScheduleRequest(4, VP, score=score, denoiser=batches, sampler=sampler_of(name))
    strategy = registry.load("timesteps", "ld3")
    found = strategy.timesteps(request, rounds=30, learning_rate=0.02)
    best = scored[tuple(found.timesteps)]
    assert found.details == {"found": "learned", "updates": 60} and len(calls) == 60
    assert best == max(scored.values()) > score(uniform_timesteps(4, VP)) + 0.1

    nothing = strategy.timesteps(dataclasses.replace(request, denoiser=list))
    assert nothing.details["found"] in ("uniform", "trailing")
