"""Noise schedules of other lengths than 1000 timesteps: samplers, lists and the greedy search."""

import itertools
import json

import pytest
import torch
from diffusers import DDIMScheduler
from solvers import dpm_solver_sample

from idcompress import ddim_sample, gamma_timesteps, registry
from idcompress.adapters.pipeline import fixed_scheduler
from idcompress.core.ddim import path_noise
from idcompress.core.plan import Plan
from idcompress.core.process import VariancePreserving, check_timesteps, scaled_linear_alphas_cumprod
from idcompress.core.random import image_generator
from idcompress.core.timestep_search import gamma_search
from idcompress.errors import IdcError
from idcompress.models.stablesr import respaced_timesteps
from idcompress.schedulers import FixedTimestepsScheduler
from idcompress.types import ScheduleRequest

from .test_samplers import PREDICTIONS, closed_form, exact_flow, gaussian_denoiser, noise, point_denoiser

LENGTHS = (100, 250, 4000)
# Without those that make nothing without a many-step run (test_lists.py and test_learned_lists.py have them).
STRATEGIES = [name for name in registry.names("timesteps") if name not in ("gits", "ld3")]


def schedule(length):
    """Stable Diffusion's betas over another number of timesteps: the noise at the end is the same."""
    betas = {"beta_start": 0.00085 * 1000 / length, "beta_end": 0.012 * 1000 / length}
    return betas, scaled_linear_alphas_cumprod(length, **betas).double()


def lists(length):
    """Legal lists that reach the top, the bottom, repeat and stay in the middle."""
    top = length - 1
    uniform = gamma_timesteps(1.0, 12, num_train_timesteps=length)
    return [uniform, [top, top // 2, top // 2, 3, 0], [top], [0], [top // 3, 7], [top, top, 0, 0]]


@pytest.mark.parametrize("length", [*LENGTHS, 1000])
def test_the_schedule_is_diffusers(length):
    betas, alphas = schedule(length)
    theirs = DDIMScheduler(length, **betas, beta_schedule="scaled_linear").alphas_cumprod
    torch.testing.assert_close(alphas.float(), theirs, rtol=2e-4, atol=1e-6)
    assert len(alphas) == length


# Samplers.


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("length", LENGTHS)
def test_one_point_is_reached(length, prediction_type):
    betas, alphas = schedule(length)
    point, start = noise(2, 4, 3, 3, seed=1), noise(2, 4, 3, 3)
    denoise = point_denoiser(point, prediction_type, alphas)
    kind = {"prediction_type": prediction_type}
    for timesteps in lists(length):
        made = {"ddim": ddim_sample(denoise, start, timesteps, alphas, **kind)}
        generator = torch.Generator().manual_seed(2)
        made["ancestral"] = ddim_sample(denoise, start, timesteps, alphas, eta=1, generator=generator, **kind)
        made["dpm_solver"] = dpm_solver_sample(denoise, start, timesteps, alphas, **kind)
        scheduler = FixedTimestepsScheduler(length, **betas, timesteps=timesteps, **kind)
        sample = start
        for timestep in scheduler.timesteps:
            sample = scheduler.step(denoise(sample, timestep), timestep, sample).prev_sample
        made["scheduler"] = sample
        for sampler, found in made.items():
            # The scheduler's own levels are float32.
            torch.testing.assert_close(found, point, atol=1e-4 if sampler == "scheduler" else 1e-6, rtol=0)


@pytest.mark.parametrize("length", LENGTHS)
def test_gaussian_data_ends_where_the_formula_says(length):
    alphas, start = schedule(length)[1], noise(1, 4, 4, 4)
    for timesteps in lists(length):
        wanted = closed_form(start, timesteps, 0.5, 0.7, alphas)[0]
        found = ddim_sample(gaussian_denoiser(0.5, 0.7, alphas=alphas), start, timesteps, alphas)
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_noise_of_the_steps_is_unit_normal(length):
    timesteps = [length - 1, length // 2, length // 2, 5, 0]
    draws = list(path_noise(torch.zeros(1, 10_000), timesteps, schedule(length)[1], [image_generator(0, 0)]))
    assert [bool(draw.any()) for draw in draws] == [True, False, True, True]  # none where a timestep repeats
    drawn = torch.cat([draws[i] for i in (0, 2, 3)])
    torch.testing.assert_close(torch.cov(drawn), torch.eye(3), atol=0.04, rtol=0)


@pytest.mark.parametrize("sample", [ddim_sample, dpm_solver_sample])
@pytest.mark.parametrize("length", LENGTHS)
def test_timesteps_beyond_the_schedule_are_refused(length, sample):
    _, alphas = schedule(length)
    with pytest.raises(ValueError, match=rf"\[0, {length - 1}\], got {length} down to 0"):
        sample(gaussian_denoiser(1.0, alphas=alphas), noise(1, 1), [length, 0], alphas)
    with pytest.raises(ValueError, match=rf"\[0, {length - 1}\]"):
        FixedTimestepsScheduler(length, timesteps=[length, 0])


@pytest.mark.parametrize("length", LENGTHS)
def test_a_scheduler_made_for_a_pipeline_keeps_its_length(length):
    betas, _ = schedule(length)
    stock = DDIMScheduler(length, **betas, beta_schedule="scaled_linear", prediction_type="v_prediction")
    found = fixed_scheduler(type("Pipeline", (), {"scheduler": stock}), Plan.over([length - 1, 40, 0]))
    assert found.timesteps.tolist() == [length - 1, 40, 0]
    assert torch.equal(found.alphas_cumprod, stock.alphas_cumprod)
    assert found.config.prediction_type == "v_prediction"


# Lists.


def request(steps, length, score=lambda timesteps, **_: 0.0):
    return ScheduleRequest(steps, VariancePreserving(schedule(length)[1]), score)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("length", LENGTHS)
def test_lists_stay_within_the_schedule(length, strategy):
    timesteps = registry.load("timesteps", strategy).timesteps
    # Of a list of every timestep there is but one; 499 candidates of that length take a quarter of an hour.
    for steps in (1, 2, 7, 50, *([length] if strategy != "autodiffusion" else [])):
        found = timesteps(request(steps, length))
        assert check_timesteps(found.timesteps, length) == found.timesteps
        assert len(found.timesteps) == steps
        if steps > 1:
            assert found.timesteps[0] > 0.8 * length
        json.dumps(found.details)
    with pytest.raises((ValueError, IdcError), match=str(length + 1)):
        timesteps(request(length + 1, length))


@pytest.mark.parametrize("length", [*LENGTHS, 500, 2000])
def test_uniform_steps_are_even(length):
    """Over a whole schedule they are every timestep once; for fewer they are the truncated even spacing."""
    uniform = registry.load("timesteps", "uniform").timesteps
    assert uniform(request(length, length)).timesteps == list(range(length - 1, -1, -1))
    for steps in (2, 3, 10, 25, 50, length // 2):
        even = torch.linspace(0, length - 1, steps).to(torch.int64).flip(0).tolist()
        assert uniform(request(steps, length)).timesteps == gamma_timesteps(1.0, steps, num_train_timesteps=length)
        assert uniform(request(steps, length)).timesteps == even
    assert even[0] == length - 1 and even[-1] == 0


@pytest.mark.parametrize("length", LENGTHS)
def test_quadratic_steps_by_their_formula(length):
    found = registry.load("timesteps", "quadratic").timesteps(request(4, length)).timesteps
    assert found == [(length - 1) * k // 16 for k in (16, 9, 4, 1)]


@pytest.mark.parametrize("length", LENGTHS)
def test_gamma_bends_the_list_towards_its_side(length):
    """Without bias it keeps both ends; the timestep at a share x of the list is (T - 1) x^gamma."""
    for gamma in (0.5, 0.8, 1.25, 2.0):
        found = gamma_timesteps(gamma, 11, bias=0, num_train_timesteps=length)
        wanted = [(length - 1) * (k / 10) ** gamma for k in range(10, -1, -1)]
        assert all(-1.01 <= t - exact <= 0.01 for t, exact in zip(found, wanted, strict=True))
        assert (found[0], found[-1]) == (length - 1, 0)


@pytest.mark.parametrize("length", LENGTHS)
def test_respaced_steps_run_from_the_last_timestep_to_the_first(length):
    for steps in (2, 50, length):
        found = respaced_timesteps(steps, length)
        assert (found[0], found[-1], len(found)) == (0, length - 1, steps)
        assert all(a < b for a, b in itertools.pairwise(found))


# The search.


@pytest.mark.parametrize(("s", "side"), [(0.3, 1), (4.0, -1)])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_search_beats_uniform_steps(length, s, side):
    """The better side depends on the data and not on how finely the schedule is cut."""
    alphas, start = schedule(length)[1], noise(1, 4, 4, 4)

    def error(timesteps):
        made = ddim_sample(gaussian_denoiser(s, alphas=alphas), start, timesteps, alphas)
        return (made - exact_flow(start, timesteps, s, alphas)).square().mean().sqrt().item()

    asked = []

    def score(timesteps, **known):
        asked.append(check_timesteps(timesteps, length))
        return -error(timesteps)

    found = registry.load("timesteps", "gamma").timesteps(request(8, length, score), bias=0.0)
    assert (found.details["gamma"] > 1) == (side > 0)
    assert asked[0] == gamma_timesteps(1.0, 8, num_train_timesteps=length)
    assert error(found.timesteps) < 0.9 * error(asked[0])
    again = gamma_search(lambda g: -error(gamma_timesteps(g, 8, bias=0, num_train_timesteps=length)))
    assert again.gamma == found.details["gamma"]
