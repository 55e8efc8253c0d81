"""What holds for every timestep strategy that is registered, and what the gamma family promises."""

import itertools
import json
import math

import pytest
import torch

import idcompress
from idcompress import registry
from idcompress.core.process import VariancePreserving, check_timesteps, scaled_linear_alphas_cumprod
from idcompress.errors import IdcError
from idcompress.types import ScheduleRequest

STRATEGIES = registry.names("timesteps")
PROCESS = VariancePreserving(scaled_linear_alphas_cumprod())
COUNTS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 25, 50)


def request(num_inference_steps, num_train_timesteps=1000):
    """A request with a cheap score, best for lists whose mean lies at 45 % of T, that checks what it is asked."""

    def score(timesteps, **known):
        assert check_timesteps(timesteps, num_train_timesteps) == timesteps
        assert len(timesteps) == num_inference_steps
        assert all(isinstance(value, (int, float)) for value in known.values())
        return 30 - abs(sum(timesteps) / len(timesteps) / num_train_timesteps - 0.45)

    return ScheduleRequest(
        num_inference_steps=num_inference_steps,
        process=VariancePreserving(scaled_linear_alphas_cumprod(num_train_timesteps)),
        score=score,
        seed=3,
    )


def timesteps_of(strategy, *arguments):
    return registry.load("timesteps", strategy).timesteps(request(*arguments))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("steps", COUNTS)
def test_lists_are_legal(strategy, steps):
    schedule = timesteps_of(strategy, steps)
    assert len(schedule.timesteps) == steps
    assert all(type(t) is int and 0 <= t <= 999 for t in schedule.timesteps)
    assert all(before >= after for before, after in itertools.pairwise(schedule.timesteps))
    json.dumps(schedule.details, allow_nan=False)  # goes into metrics.json


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lists_are_deterministic(strategy):
    first = timesteps_of(strategy, 8)
    torch.manual_seed(99)  # global random state must not matter
    assert timesteps_of(strategy, 8) == first


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_step_counts_out_of_range_are_refused(strategy, steps):
    with pytest.raises((ValueError, IdcError), match=str(steps)):
        timesteps_of(strategy, steps)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_other_training_lengths(strategy):
    schedule = timesteps_of(strategy, 6, 500)
    assert check_timesteps(schedule.timesteps, 500) == schedule.timesteps
    assert len(schedule.timesteps) == 6


GAMMAS = (0.25, 0.5, 1 / 1.2, 0.95, 1.0, 1.05, 1.2, 2.0, 3.5)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50, 999, 1000])
def test_gamma_one_is_uniform(steps):
    uniform = torch.linspace(0, 999, steps).to(torch.int64).flip(0).tolist()
    for bias in (0, 30, 60):
        assert idcompress.gamma_timesteps(1.0, steps, bias=bias) == uniform
    assert timesteps_of("uniform", steps).timesteps == uniform


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("steps", [2, 5, 10, 50])
def test_gamma_endpoints(gamma, steps):
    assert idcompress.gamma_timesteps(gamma, steps, bias=0)[:: steps - 1] == [999, 0]
    biased = idcompress.gamma_timesteps(gamma, steps, bias=30)
    assert (biased[0] < 999) == (gamma > 1)
    assert (biased[-1] > 0) == (gamma < 1)


@pytest.mark.parametrize("bias", [0, 30])
def test_gamma_orders_the_lists(bias):
    """A larger gamma never raises an entry: below 1 lists crowd near T, above 1 near 0."""
    lists = [idcompress.gamma_timesteps(gamma, 20, bias=bias) for gamma in GAMMAS]
    for larger, smaller in itertools.pairwise(lists):
        assert all(a >= b for a, b in zip(larger, smaller, strict=True))
        assert larger != smaller


def test_gamma_single_step():
    assert [idcompress.gamma_timesteps(gamma, 1, bias=0) for gamma in GAMMAS] == [[0]] * len(GAMMAS)
    assert idcompress.gamma_timesteps(0.5, 1, bias=30)[0] > 0


def test_gamma_repeats_are_kept():
    timesteps = idcompress.gamma_timesteps(4.0, 25)
    assert len(timesteps) == 25 > len(set(timesteps))
    assert timesteps[-2:] == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0}, "gamma must be > 0"),
        ({"gamma": -1.0}, "gamma must be > 0"),
        ({"gamma": math.nan}, "gamma must be > 0"),
        ({"gamma": 1.0, "bias": -1}, "bias must be >= 0"),
        ({"gamma": 1.0, "num_train_timesteps": 4}, "between 1 and 4, got 5"),
    ],
)
def test_gamma_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        idcompress.gamma_timesteps(num_inference_steps=5, **arguments)


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([], "at least one"),
        ([500, 120, 140], "120 then 140 at position 2"),
        ([1000, 3], r"\[0, 999\].*1000"),
        ([3, -1], r"\[0, 999\].*-1"),
    ],
)
def test_illegal_lists_are_named(timesteps, message):
    with pytest.raises(ValueError, match=message):
        check_timesteps(timesteps)


def test_gamma_strategy_takes_a_known_gamma_without_sampling():
    strategy = registry.load("timesteps", "gamma")
    schedule = strategy.timesteps(ScheduleRequest(10, PROCESS), gamma=0.8)
    assert schedule.timesteps == idcompress.gamma_timesteps(0.8, 10)
    with pytest.raises(IdcError, match=r"timesteps\.gamma=VALUE"):
        strategy.timesteps(ScheduleRequest(10, PROCESS))


def test_quadratic_formula():
    assert timesteps_of("quadratic", 4).timesteps == [999, 561, 249, 62]
