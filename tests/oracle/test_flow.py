"""Samplers on a rectified flow against mathematics.

DDIM between pairs (signal, noise) is Euler's method there. For data N(0, s^2) the state has the variance V(t) =
(1 - t)^2 s^2 + t^2, the exact flow keeps x / sqrt(V), and the velocity is (t - (1 - t) s^2) / V times x.
"""

import itertools
import math
import random

import pytest
import torch

from idcompress.core.ddim import Ddim, ddim_step, without_cache
from idcompress.core.plan import Plan
from idcompress.core.process import RectifiedFlow, predict
from idcompress.core.sample import sample
from idcompress.samplers.dpm_solver import SAMPLER as DPM_SOLVER

FLOW = RectifiedFlow(1000)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole_numbers(*shape, seed):
    """Floats whose sums and products with quarters are exact."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize(("timestep", "following"), itertools.combinations([1000, 750, 500, 250, 0], 2))
def test_a_ddim_step_is_eulers_method(timestep, following):
    state, velocity = whole_numbers(2, 4, 3, 3, seed=0), whole_numbers(2, 4, 3, 3, seed=1)
    level, next_level = FLOW.level(timestep), FLOW.level(following)
    found = ddim_step(predict(velocity, state, level, "flow"), level, next_level)
    assert torch.equal(found, state + (following - timestep) / 1000 * velocity)


def lists(seed=0):
    """Random lists of real timesteps, with repeats, both ends, and the extreme ones."""
    draws = random.Random(seed)
    found = [sorted((draws.uniform(0, 1000) for _ in range(n)), reverse=True) for n in (2, 3, 8, 30)]
    return [*found, [1000, *found[1], 0], [1000], [0], [0.125], [1000, 0], [500.5] * 3, [1000, 1000, 0, 0]]


@pytest.mark.parametrize("timesteps", lists(), ids=lambda t: f"{len(t)}_from_{t[0]:g}")
def test_one_point_is_reached_over_any_list(timesteps):
    point, noise = draw(2, 4, 3, 5, seed=1), draw(2, 4, 3, 5)
    level = FLOW.level(timesteps[0])
    start = level.signal * point + level.noise * noise  # at noise 0 there is nothing left to be removed

    def denoise(state, timestep):
        share = float(timestep) / 1000
        return (state - point) / share if share else torch.zeros_like(state)

    found = sample(without_cache(denoise), start, Plan.over(timesteps), FLOW, Ddim())
    torch.testing.assert_close(found, point, atol=1e-6, rtol=0)  # timesteps reach networks in float32


def variance(share, s):
    return (1 - share) ** 2 * s**2 + share**2


def error(sampler, timesteps, s):
    """RMS distance from what the exact flow's state at the last timestep says of x_0."""

    def velocity(state, timestep):
        share = float(timestep) / 1000
        return (share - (1 - share) * s**2) / variance(share, s) * state

    start, (first, last) = draw(1, 4, 8, 8), (timesteps[0] / 1000, timesteps[-1] / 1000)
    found = sample(without_cache(velocity), start, Plan.over(timesteps), FLOW, sampler)
    state = start * math.sqrt(variance(last, s) / variance(first, s))
    exact = (1 - last) * s**2 / variance(last, s) * state
    return (found - exact).square().mean().sqrt().item()


@pytest.mark.parametrize("s", [0.3, 1.0, 2.0])
def test_ddim_is_of_first_order(s):
    """Over all of the flow, from pure noise to the clean end."""
    errors = [error(Ddim(), [1000 * (1 - i / n) for i in range(n + 1)], s) for n in (25, 50, 100, 200)]
    orders = [math.log2(before / after) for before, after in itertools.pairwise(errors)]
    assert all(0.8 < order < 1.25 for order in orders), orders


@pytest.mark.parametrize("s", [0.3, 1.0, 2.0])
def test_dpm_solver_is_of_second_order(s):
    """Over timesteps that are even in the logarithm of the signal-to-noise ratio, which it integrates over."""

    def even(n):
        return [1000 / (1 + math.exp(8 * i / n - 4)) for i in range(n + 1)]

    errors = [error(DPM_SOLVER, even(n), s) for n in (25, 50, 100, 200)]
    orders = [math.log2(before / after) for before, after in itertools.pairwise(errors)]
    assert all(1.8 < order < 2.25 for order in orders), orders


def test_dpm_solver_begins_at_pure_noise():
    """The first move from there is DDIM's: nothing is known before it, and no signal is in the state."""
    timesteps = [1000, 600]
    assert error(DPM_SOLVER, timesteps, 0.5) == pytest.approx(error(Ddim(), timesteps, 0.5))
    many = [1000 * (1 - i / 50) for i in range(50)]
    assert error(DPM_SOLVER, many, 0.5) < 0.5 * error(Ddim(), many, 0.5)
