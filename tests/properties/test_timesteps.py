"""What holds for every timestep strategy that is registered, and what the gamma family promises."""

import functools
import itertools
import json
import math

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers import AysSchedules

import idcompress
from idcompress import registry
from idcompress.core.ddim import Ddim, without_cache
from idcompress.core.plan import Plan
from idcompress.core.process import VariancePreserving, check_timesteps, scaled_linear_alphas_cumprod
from idcompress.core.sample import trajectory
from idcompress.core.timestep_search import uniform_timesteps
from idcompress.errors import IdcError
from idcompress.types import ScheduleRequest, Teacher

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

    process = VariancePreserving(scaled_linear_alphas_cumprod(num_train_timesteps))
    run = functools.partial(teacher, process)
    return ScheduleRequest(
        num_inference_steps,
        process,
        score=score,
        teacher=run,
        denoiser=lambda: [(without_cache(clusters(process)), run().samples[0], run().final)],
        sampler=Ddim(),
        seed=3,
    )


def clusters(process):
    """A network for data of two points."""

    def denoise(state, timestep):
        level = process.level(timestep.item())
        return (state - level.signal * torch.tanh(level.signal * state / level.noise**2)) / level.noise

    return denoise


@functools.cache
def teacher(process):
    """Sixty steps over data of two points."""
    start = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    plan = Plan.over(uniform_timesteps(60, process))
    visits = list(trajectory(without_cache(clusters(process)), start, plan, process, Ddim()))
    samples, originals = (
        torch.stack([part(visit.moment) for visit in visits])
        for part in (lambda m: m.sample, lambda m: m.prediction.pred_original_sample)
    )
    return Teacher(plan.timesteps, samples, originals, visits[-1].finished[0][1])


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


@pytest.mark.parametrize("steps", [1, 3, 5, 7, 10, 50, 1000])
def test_trailing_is_diffusers(steps):
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert timesteps_of("trailing", steps).timesteps == scheduler.timesteps.tolist()


def test_ays_is_the_published_list():
    assert timesteps_of("ays", 10).timesteps == AysSchedules["StableDiffusionTimesteps"]
    half, others = timesteps_of("ays", 5).timesteps, AysSchedules["StableDiffusionTimesteps"]
    assert half == others[::2]
    for coarse, fine in (
        (half, timesteps_of("ays", 20).timesteps[::4]),
        (others, timesteps_of("ays", 20).timesteps[::2]),
    ):
        assert coarse == fine


def test_arctan_takes_a_known_number_without_sampling():
    arctan = registry.load("timesteps", "arctan")
    found = {c: arctan.timesteps(ScheduleRequest(6, PROCESS), c=c).timesteps for c in (0.05, 1.0, 20.0)}
    assert {tuple(timesteps[::5]) for timesteps in found.values()} == {(999, 0)}
    # c = 1: the angle of signal and noise is even
    angles = [math.atan2(*reversed(PROCESS.level(t))) for t in found[1.0]]
    assert all(abs(a - b - (angles[0] - angles[-1]) / 5) < 5e-3 for a, b in itertools.pairwise(angles))
    for smaller, larger in itertools.pairwise(found.values()):
        assert all(a < b for a, b in zip(smaller[1:-1], larger[1:-1], strict=True))
    with pytest.raises(IdcError, match=r"timesteps\.c=VALUE"):
        arctan.timesteps(ScheduleRequest(6, PROCESS))


@pytest.mark.parametrize("strategy", ["autodiffusion", "pattern"])
def test_a_search_has_a_budget_and_is_no_worse_than_uniform(strategy):
    asked = []

    def value(timesteps):
        return 30 - abs(sum(timesteps) / len(timesteps) - 450)

    def score(timesteps, **_):
        asked.append(tuple(timesteps))
        return value(timesteps)

    given = ScheduleRequest(5, PROCESS, score=score, teacher=lambda: teacher(PROCESS))
    budget = (
        {"population": 8, "epochs": 3, "mutations": 4, "crossovers": 2}
        if strategy == "autodiffusion"
        else {"budget": 20}
    )
    found = registry.load("timesteps", strategy).timesteps(given, **budget)
    assert len(asked) == len(set(asked)) == found.details["evaluations"] <= 23
    assert found.timesteps == list(max(asked, key=value))
    assert value(found.timesteps) > value(timesteps_of("uniform", 5).timesteps)
