"""Samplers against mathematics: one data point, and Gaussian data, whose optimal denoisers are formulas.

For data N(0, s^2) write the state in units of its own spread, u = x / sqrt(V) with V = a s^2 + 1 - a. The exact flow
keeps u; a DDIM step from noise level a to a' multiplies it by cos(phi - phi'), where tan(phi) = sqrt(1 - a) /
(s sqrt(a)). So every DDIM result below is known in closed form, and so is the list that makes the error least.
"""

import itertools
import math
import random

import pytest
import torch
from solvers import dpm_solver_sample

import idcompress
from idcompress.core.ddim import path_noise
from idcompress.core.process import scaled_linear_alphas_cumprod
from idcompress.core.random import image_generator, randn_like
from idcompress.core.timestep_search import gamma_search
from idcompress.schedulers import FixedTimestepsScheduler

ALPHAS = scaled_linear_alphas_cumprod().double()
COSINE = torch.cos(torch.linspace(0.03, 1.5, 1000, dtype=torch.float64)) ** 2  # phi linear in t for s = 1
LOG_LINEAR = torch.sigmoid(2 * torch.linspace(5, -5, 1000, dtype=torch.float64))  # log signal-to-noise linear in t
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def lists(seed=0):
    """Random legal lists, half of them with repeats, and the extreme ones."""
    draw = random.Random(seed)
    found = [sorted((draw.randrange(1000) for _ in range(n)), reverse=True) for n in (2, 3, 8, 30)]
    found += [sorted(draw.choices(range(0, 1000, 90), k=n), reverse=True) for n in (8, 30)]
    return [*found, [0], [999], [402], [999, 0], [500] * 4, [999, 999, 0, 0]]


def model_output(x0, epsilon, alpha, prediction_type):
    if prediction_type == "epsilon":
        return epsilon
    return x0 if prediction_type == "sample" else alpha**0.5 * epsilon - (1 - alpha) ** 0.5 * x0


def point_denoiser(point, prediction_type, alphas=ALPHAS):
    """The exact model of data that is this one point."""

    def denoise(sample, timestep):
        alpha = alphas[timestep]
        epsilon = (sample - alpha**0.5 * point) / (1 - alpha) ** 0.5
        return model_output(point, epsilon, alpha, prediction_type)

    return denoise


def gaussian_denoiser(s, mean=0.0, prediction_type="epsilon", alphas=ALPHAS):
    """The exact model of data N(mean, s^2), element by element."""

    def denoise(sample, timestep):
        alpha = alphas[timestep]
        centred = (sample - alpha**0.5 * mean) / (alpha * s**2 + 1 - alpha)
        return model_output(mean + alpha**0.5 * s**2 * centred, (1 - alpha) ** 0.5 * centred, alpha, prediction_type)

    return denoise


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("timesteps", lists(), ids=lambda t: f"{len(t)}_from_{t[0]}")
def test_one_point_is_reached_over_any_list(timesteps, prediction_type):
    point, start = noise(2, 4, 3, 5, seed=1), noise(2, 4, 3, 5)
    denoise = point_denoiser(point, prediction_type)

    def check(result, atol=1e-6):
        assert result.dtype == start.dtype
        torch.testing.assert_close(result, point, atol=atol, rtol=0)

    for eta in (0.0, 0.5, 1.0):
        generator = torch.Generator().manual_seed(2)
        arguments = {"eta": eta, "generator": generator, "prediction_type": prediction_type}
        check(idcompress.ddim_sample(denoise, start, timesteps, ALPHAS, **arguments))
    check(dpm_solver_sample(denoise, start, timesteps, ALPHAS, prediction_type=prediction_type))
    scheduler, sample = FixedTimestepsScheduler(timesteps=timesteps, prediction_type=prediction_type), start
    for timestep in scheduler.timesteps:
        sample = scheduler.step(denoise(sample, timestep), timestep, sample).prev_sample
    check(sample, atol=1e-5)  # its noise levels are float32


def angle(t, s, alphas):
    return math.atan2(float(1 - alphas[t]) ** 0.5, s * float(alphas[t]) ** 0.5)


def closed_form(start, timesteps, s, mean=0.0, alphas=ALPHAS):
    """What DDIM makes of Gaussian data, without sampling."""
    first, last = (float(alphas[t]) for t in (timesteps[0], timesteps[-1]))
    units = (start - first**0.5 * mean) / (first * s**2 + 1 - first) ** 0.5
    angles = [angle(t, s, alphas) for t in timesteps]
    shrink = math.prod(math.cos(a - b) for a, b in itertools.pairwise(angles))
    return mean + s * units * shrink * math.cos(angle(timesteps[-1], s, alphas)), last


def exact_flow(start, timesteps, s, alphas=ALPHAS):
    """x_0 predicted at the last timestep from a state that followed the flow exactly."""
    first = float(alphas[timesteps[0]])
    return s * start / (first * s**2 + 1 - first) ** 0.5 * math.cos(angle(timesteps[-1], s, alphas))


@pytest.mark.parametrize("s", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_gaussian_data_ends_where_the_formula_says(s, prediction_type):
    start = noise(1, 4, 4, 4)
    for timesteps in lists(seed=3):
        denoise = gaussian_denoiser(s, 0.7, prediction_type)
        result = idcompress.ddim_sample(denoise, start, timesteps, ALPHAS, prediction_type=prediction_type)
        torch.testing.assert_close(result, closed_form(start, timesteps, s, 0.7)[0], atol=1e-10, rtol=0)


def error(sample, timesteps, s, alphas=ALPHAS):
    """RMS distance from the exact flow's end."""
    start = noise(1, 4, 8, 8)
    result = sample(gaussian_denoiser(s, alphas=alphas), start, timesteps, alphas)
    return (result - exact_flow(start, timesteps, s, alphas)).square().mean().sqrt().item()


def uniform(steps):
    return idcompress.gamma_timesteps(1.0, steps)


@pytest.mark.parametrize("s", [0.3, 1.0, 2.0])
def test_ddim_is_of_first_order(s):
    errors = [error(idcompress.ddim_sample, uniform(n), s) for n in (25, 50, 100, 200)]
    orders = [math.log2(before / after) for before, after in itertools.pairwise(errors)]
    assert all(0.8 < order < 1.25 for order in orders), orders


def log_uniform(steps):
    """Timesteps evenly spread in the logarithm of the signal-to-noise ratio, which DPM-Solver integrates over."""
    ratio = torch.log(ALPHAS / (1 - ALPHAS))
    wanted = torch.linspace(ratio[999], ratio[0], steps, dtype=torch.float64)
    return [int((ratio - value).abs().argmin()) for value in wanted]


@pytest.mark.parametrize("s", [0.3, 1.0, 2.0])
def test_dpm_solver_is_of_second_order(s):
    counts = (38, 75, 149, 298)  # steps of 27, 13.5, 6.75 and 3.36 timesteps
    errors = [error(dpm_solver_sample, uniform(n), s, LOG_LINEAR) for n in counts]
    orders = [math.log2(before / after) for before, after in itertools.pairwise(errors)]
    assert all(1.8 < order < 2.2 for order in orders), orders


@pytest.mark.parametrize("s", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_second_order_beats_first_order(s, steps):
    timesteps = log_uniform(steps)
    assert error(dpm_solver_sample, timesteps, s) < 0.2 * error(idcompress.ddim_sample, timesteps, s)


@pytest.mark.parametrize(("s", "side"), [(0.3, 1), (1.0, 1), (4.0, -1)])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_search_beats_uniform_at_equal_steps(s, side, steps):
    """The better side depends on the data's spread; with bias 0 every list runs from 999 to 0, to the same target."""
    calls = []

    def score(gamma):
        calls.append(gamma)
        return -error(idcompress.ddim_sample, idcompress.gamma_timesteps(gamma, steps, bias=0), s)

    found = gamma_search(score)
    assert (found.gamma > 1) == (side > 0)
    assert -found.value < 0.9 * error(idcompress.ddim_sample, uniform(steps), s)
    assert len(calls) == len(set(calls))
    assert found.value == max(probe.value for probe in found.probes)


@pytest.mark.parametrize("steps", [4, 10, 28])
def test_search_keeps_uniform_where_uniform_is_best(steps):
    """The error is 1 - prod cos(step in phi), least for equal steps, and phi is linear in t under this schedule."""

    def score(gamma):
        timesteps = idcompress.gamma_timesteps(gamma, steps, bias=0)
        return -error(idcompress.ddim_sample, timesteps, 1.0, COSINE)

    assert 999 % (steps - 1) == 0  # the uniform list is then exactly even
    found = gamma_search(score)
    assert found.gamma == 1
    assert [probe.gamma for probe in found.probes if probe.accepted] == [1]


def test_search_keeps_uniform_where_all_lists_are_equal():
    point, start = noise(1, 4, 2, 2, seed=1), noise(1, 4, 2, 2)

    def score(gamma):
        result = idcompress.ddim_sample(
            point_denoiser(point, "epsilon"), start, idcompress.gamma_timesteps(gamma, 6), ALPHAS
        )
        return -round((result - point).abs().max().item(), 9)

    assert gamma_search(score).gamma == 1


def stochastic_variance(timesteps, s, eta):
    """Variance of DDIM's result on Gaussian data by adding up the variances of its steps."""
    levels = [float(ALPHAS[t]) for t in timesteps]
    variance = 1.0
    for a, b in itertools.pairwise(levels):
        sigma = eta * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
        scale = (math.sqrt(a * b) * s**2 + math.sqrt(1 - b - sigma**2) * math.sqrt(1 - a)) / (a * s**2 + 1 - a)
        variance = scale**2 * variance + sigma**2
    a = levels[-1]
    return variance * (math.sqrt(a) * s**2 / (a * s**2 + 1 - a)) ** 2


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("s", [0.5, 2.0])
def test_noise_has_the_right_variance(s, eta):
    start, generator = noise(100_000, 1), torch.Generator().manual_seed(4)  # relative standard error 0.45 %
    misses = []
    for timesteps in ([999, 700, 700, 150, 20], uniform(6), uniform(60)):
        result = idcompress.ddim_sample(gaussian_denoiser(s), start, timesteps, ALPHAS, eta=eta, generator=generator)
        assert result.var().item() == pytest.approx(stochastic_variance(timesteps, s, eta), rel=0.02)
        assert result.mean().item() == pytest.approx(0, abs=0.01 * s)
        misses.append(abs(result.var().item() - s**2))
    assert misses[-1] < 0.4 * misses[-2]  # more steps come closer to the data's own


def follow_path(denoise, start, timesteps, indices=(0, 1)):
    """Ancestral sampling over a list by the images' common paths: its result, and the state at each timestep."""
    states = {}

    def watched(sample, timestep):
        states[int(timestep)] = sample
        return denoise(sample, timestep)

    path = path_noise(start, timesteps, ALPHAS, [image_generator(3, index) for index in indices])
    return idcompress.ddim_sample(watched, start, timesteps, ALPHAS, eta=1, step_noise=path), states


def test_lists_of_any_length_share_their_noise():
    """Where the prediction is constant, the state at a timestep does not depend on the steps in between."""
    start, point = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    _, few = follow_path(point_denoiser(point, "epsilon"), start, [999, 500, 20, 0])
    _, many = follow_path(point_denoiser(point, "epsilon"), start, [999, 730, 500, 500, 100, 20, 10, 0])
    for timestep, state in few.items():
        torch.testing.assert_close(state, many[timestep], atol=1e-9, rtol=0)
    assert not torch.allclose(few[500], start, atol=0.1)


def test_path_noise_is_unit_normal_and_independent_between_steps():
    start, timesteps = torch.zeros(1, 20_000), [900, 899, 500, 500, 3, 0]
    draws = list(path_noise(start, timesteps, ALPHAS, [image_generator(0, 0)]))
    assert [draw.shape for draw in draws] == [start.shape] * 5
    assert not draws[2].any()  # the repeat
    drawn = torch.cat([draws[i] for i in (0, 1, 3, 4)])
    torch.testing.assert_close(torch.cov(drawn), torch.eye(4), atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.mean(dim=1), torch.zeros(4), atol=0.03, rtol=0)


def test_common_noise_brings_lists_together():
    """On Gaussian data few steps come nearer to many steps than to many steps with other noise."""
    start, denoise = noise(2, 4, 16, 16), gaussian_denoiser(0.5)
    many, _ = follow_path(denoise, start, uniform(200))
    other, _ = follow_path(denoise, start, uniform(200), indices=(5, 6))
    distances = [(follow_path(denoise, start, uniform(n))[0] - many).square().mean().sqrt() for n in (10, 25, 100)]
    assert distances[0] > 1.5 * distances[1] > 1.5**2 * distances[2]
    assert distances[1] < 0.5 * (other - many).square().mean().sqrt()


def test_path_noise_belongs_to_the_image():
    start, timesteps = noise(3, 4, 8, 8), uniform(7)
    generators = [image_generator(3, index) for index in range(3)]
    whole = list(path_noise(start, timesteps, ALPHAS, generators))
    parts = [list(path_noise(start[i : i + 1], timesteps, ALPHAS, generators[i : i + 1])) for i in range(3)]
    assert all(torch.equal(one, torch.cat(split)) for one, split in zip(whole, zip(*parts, strict=True), strict=True))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("split", [(1, 1, 1, 1, 1, 1), (2, 4), (3, 3), (5, 1)])
def test_a_batch_and_its_parts_agree(split, eta):
    denoise, timesteps = gaussian_denoiser(0.5, 0.2), uniform(7)
    indices = [4, 0, 9, 2, 7, 5]

    def run(part):
        generators = [image_generator(11, index) for index in part]
        start = torch.cat([torch.randn(1, 4, 8, 8, generator=generator) for generator in generators])
        return idcompress.ddim_sample(denoise, start, timesteps, ALPHAS, eta=eta, generator=generators)

    bounds = [0, *itertools.accumulate(split)]
    parts = torch.cat([run(indices[a:b]) for a, b in itertools.pairwise(bounds)])
    whole = run(indices)
    assert torch.equal(whole, parts)
    assert torch.equal(whole[[2, 0]], run([9, 4]))  # nor does the order matter
    assert len({row.sum().item() for row in whole}) == 6


def test_generators_and_images_must_pair_up():
    with pytest.raises(ValueError, match="got 2 generators for a batch of 3"):
        randn_like(torch.zeros(3, 1), [image_generator(0, i) for i in range(2)])


def test_seeds_and_indices_give_different_noise():
    draws = {torch.randn(1, generator=image_generator(s, i)).item() for s in range(20) for i in range(50)}
    assert len(draws) == 1000


@pytest.mark.parametrize("sample", [idcompress.ddim_sample, dpm_solver_sample])
def test_samplers_refuse(sample):
    denoise, start = gaussian_denoiser(1.0), noise(1, 1)
    for timesteps, message in (([], "at least one"), ([5, 6], "5 then 6 at position 1"), ([1000], "got 1000")):
        with pytest.raises(ValueError, match=message):
            sample(denoise, start, timesteps, ALPHAS)
    with pytest.raises(ValueError, match="prediction_type must be epsilon"):
        sample(denoise, start, [9], ALPHAS, prediction_type="flow")
    with pytest.raises(ValueError, match="differ in shape"):
        sample(lambda x, t: x[..., :0], start, [9], ALPHAS)


def test_the_network_sees_each_listed_timestep():
    seen = []

    def denoise(sample, timestep):
        assert timestep.shape == ()
        assert timestep.dtype == torch.int64
        seen.append(int(timestep))
        return sample

    idcompress.ddim_sample(denoise, noise(1, 1), torch.tensor([700, 300, 300, 5]), ALPHAS)
    assert seen == [700, 300, 300, 5]
