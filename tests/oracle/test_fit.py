"""The fitted sampler against mathematics: Gaussian data, on which a few numbers make up for the steps left out, and
two clusters of data, on which it gains an order over DDIM."""

import itertools
import math

import pytest
import torch

from idcompress.core.ddim import Ddim, ddim_step, without_cache
from idcompress.core.fit import FitSettings, fit_plan, fit_row, state_at
from idcompress.core.plan import Plan, Step
from idcompress.core.process import CLEAN, Prediction, RectifiedFlow, VariancePreserving, scaled_linear_alphas_cumprod
from idcompress.core.sample import Beginnings, Moment, sample, trajectory
from idcompress.core.timestep_search import gamma_timesteps
from idcompress.samplers.fitted import SAMPLER

VP = VariancePreserving(scaled_linear_alphas_cumprod().double())
FLOW = RectifiedFlow()
SPREADS = torch.tensor([0.3, 1.0, 2.0]).repeat(4).double().view(4, 3)  # of the pixels of a channel


def noise(images, seed=0):
    return torch.randn(images, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def denoiser(original, process=VP):
    """A network that predicts x_0 by a formula of the sample and its level."""

    def denoise(state, timestep):
        level = process.level(timestep.item())
        x0 = original(state, level)
        return x0 if process is FLOW else (state - level.signal * x0) / level.noise

    return without_cache(denoise)


def gaussian(state, level, spreads=SPREADS):
    """The exact x_0 of data N(0, spreads^2)."""
    return level.signal * spreads**2 / (level.signal**2 * spreads**2 + level.noise**2) * state


def clusters(state, level, spread=0.6):
    """The exact x_0 of data in equal parts around 1 and -1, with this spread."""
    variance = level.signal**2 * spread**2 + level.noise**2
    mean = torch.tanh(level.signal * state / variance)
    return mean + level.signal * spread**2 / variance * (state - level.signal * mean)


class Run:
    """A many-step run, and fits to it."""

    def __init__(self, original, start, timesteps, process=VP):
        self.denoise, self.start, self.process = denoiser(original, process), start, process
        self.timesteps = timesteps
        visits = list(trajectory(self.denoise, start, Plan.over(timesteps), process, Ddim()))
        self.samples = torch.stack([visit.moment.sample for visit in visits])
        self.originals = torch.stack([visit.moment.prediction.pred_original_sample for visit in visits])
        self.final = visits[-1].finished[0][1]

    def state(self, timestep):
        return state_at(timestep, self.timesteps, self.samples, self.originals, self.final, self.process)

    def fit(self, timesteps, **settings):
        beginnings = Beginnings()

        def over_batches(plan, added):
            *_, last = trajectory(self.denoise, self.start, plan, self.process, SAMPLER, beginnings=beginnings)
            return [added(last.history, self.state)]

        return fit_plan(Plan.over(timesteps, sampler="fitted"), self.process, over_batches, FitSettings(**settings))

    def sample(self, plan, sampler=SAMPLER):
        return sample(self.denoise, self.start, plan, self.process, sampler)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 9])
def test_a_gaussian_teacher_is_reproduced_exactly(steps):
    """On noise that the fit has not seen. Each of three spreads is scaled by a factor of its own in every step, and a
    step's numbers, for the sample and the two latest predictions, have that many degrees of freedom from the second
    step on; of the first step there is one prediction less, and so one spread less."""
    timesteps = gamma_timesteps(1.0, 50)
    teacher, unseen = (Run(gaussian, noise(6, seed), timesteps) for seed in (0, 1))
    plan = teacher.fit(gamma_timesteps(1.0, steps), order=2, ridge=0.0)
    error = (unseen.sample(plan) - unseen.final).abs().max().item()
    assert error < 1e-9 if steps > 1 else error > 1e-3
    assert [len(row) for row in plan.coefficients] == [2, 3, 3, 3, 3, 3, 3, 3, 3][:steps]


def test_two_spreads_need_one_prediction_only():
    def two(state, level):
        return gaussian(state, level, SPREADS[:, :2])

    teacher, unseen = (Run(two, noise(6, seed)[..., :2], gamma_timesteps(1.0, 50)) for seed in (0, 1))
    plan = teacher.fit([999, 500, 20], order=1, ridge=0.0)
    torch.testing.assert_close(unseen.sample(plan), unseen.final, atol=1e-9, rtol=0)


def test_a_channel_of_its_own_has_numbers_of_its_own():
    """Four channels of spreads in an order of their own: scalars for all of them cannot tell them apart."""

    def original(state, level):
        return gaussian(state, level, torch.tensor([0.2, 0.5, 1.0, 3.0]).double().view(4, 1))

    teacher, unseen = (Run(original, noise(6, seed), gamma_timesteps(1.0, 50)) for seed in (0, 1))
    errors = {}
    for per_channel in (False, True):
        plan = teacher.fit([999, 600, 100], order=1, ridge=0.0, per_channel=per_channel)
        errors[per_channel] = (unseen.sample(plan) - unseen.final).abs().max().item()
        assert [len(row) for row in plan.coefficients] == ([8, 8, 8] if per_channel else [2, 2, 2])
    assert errors[True] < 1e-9 < 1e-4 < errors[False]


@pytest.mark.parametrize("process", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("rows", ["none", "empty", "zeros", "zeros per channel"])
def test_without_numbers_it_is_ddim_bit_for_bit(process, rows):
    timesteps = [999, 700, 700, 301, 12]
    first, others = {
        "none": ((), ()),
        "empty": ((), ()),
        "zeros": ((0.0, -0.0), (0, 0.0, -0.0)),
        "zeros per channel": ((0.0,) * 8, (0.0,) * 12),
    }[rows]
    start, plan = noise(2).float(), Plan.over(timesteps)
    fitted = Plan(plan.steps, "fitted", coefficients=None if rows == "none" else (first, *[others] * 4))
    denoise = denoiser(clusters, process)
    assert torch.equal(sample(denoise, start, fitted, process, SAMPLER), sample(denoise, start, plan, process, Ddim()))


def test_it_converges_one_order_faster_than_ddim():
    """On two clusters of data over a process whose timesteps are real, against a run of 1,024 steps; on other noise."""
    fine = [1000 * (1 - i / 1024) for i in range(1024)]
    teacher, unseen = (Run(clusters, noise(40, seed), fine, FLOW) for seed in (0, 1))
    errors = {"ddim": [], "fitted": []}
    for steps in (8, 16, 32, 64):
        timesteps = [1000 * (1 - i / steps) for i in range(steps)]
        plan = teacher.fit(timesteps, ridge=0.0)
        for name, found in (("ddim", unseen.sample(Plan.over(timesteps), Ddim())), ("fitted", unseen.sample(plan))):
            errors[name].append((found - unseen.final).square().mean().sqrt().item())
    orders = {name: [math.log2(a / b) for a, b in itertools.pairwise(found)] for name, found in errors.items()}
    assert all(0.85 < order < 1.25 for order in orders["ddim"]), orders
    assert all(order > 1.7 for order in orders["fitted"]), orders
    assert all(fitted < ddim / 4 for ddim, fitted in zip(*errors.values(), strict=True)), errors


def test_the_least_squares_are_those_of_all_images_together():
    """Two batches give what one gives, and the numbers are those of the normal equations written out."""
    level, next_level = VP.level(800), VP.level(400)

    def moment(seed, images):
        parts = [noise(images, 10 * seed + i) for i in range(3)]
        return Moment(Step(800), level, parts[0], Prediction(parts[1], parts[2]))

    history, target = [moment(1, 4), moment(2, 4), moment(3, 4)], noise(4, 99)
    for order in (1, 2, 3):
        settings = FitSettings(order=order, ridge=0.01)
        found = fit_row([(history, target)], next_level, settings)
        x0s = [m.prediction.pred_original_sample for m in history]
        features = torch.stack([history[-1].sample, *x0s[::-1][:order]]).flatten(1)
        residual = (target - ddim_step(history[-1].prediction, level, next_level)).flatten()
        gram = features @ features.T
        wanted = torch.linalg.solve(gram + 0.01 * gram.diagonal().mean() * torch.eye(order + 1), features @ residual)
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), wanted)

        def part(moment, half):
            return moment._replace(
                sample=moment.sample[half], prediction=Prediction(*(p[half] for p in moment.prediction))
            )

        halves = [([part(m, half) for m in history], target[half]) for half in (slice(0, 1), slice(1, 4))]
        torch.testing.assert_close(fit_row(halves, next_level, settings), found)


def test_a_run_is_known_between_its_own_timesteps_too():
    run = Run(clusters, noise(3), [999, 800, 800, 400, 10])
    for position, timestep in ((0, 999), (1, 800), (3, 400), (4, 10)):
        assert torch.equal(run.state(timestep), run.samples[position])
    assert torch.equal(run.state(None), run.final)
    for position, timestep in ((0, 900), (2, 500), (4, 3)):
        level = VP.level(run.timesteps[position])
        x0 = run.originals[position]
        epsilon = (run.samples[position] - level.signal * x0) / level.noise
        wanted = ddim_step(Prediction(x0, epsilon), level, VP.level(timestep))
        torch.testing.assert_close(run.state(timestep), wanted)
    assert CLEAN.noise == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": 0}, "order must be between 1 and 3, got 0"),
        ({"order": 4}, "order must be between 1 and 3, got 4"),
        ({"ridge": -1.0}, "ridge must be 0 or more"),
        ({"ridge": math.nan}, "ridge must be 0 or more"),
        ({"folds": 0}, "folds must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FitSettings(**settings)


def test_rows_that_do_not_fit_are_refused():
    history = [Moment(Step(900), VP.level(900), noise(1), Prediction(noise(1, 1), noise(1, 2)))]
    for row in ((1.0, 2.0, 3.0), (1.0,) * 5, (1.0,) * 12):
        with pytest.raises(ValueError, match="does not fit"):
            SAMPLER.advance(history, VP.level(500), coefficients=row)
    with pytest.raises(ValueError, match="three or more channels, got 2"):
        few = [Moment(Step(900), VP.level(900), noise(1)[:, :2], Prediction(noise(1, 1)[:, :2], noise(1, 2)[:, :2]))]
        fit_row([(few, noise(1)[:, :2])], CLEAN, FitSettings(per_channel=True))
