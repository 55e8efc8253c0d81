"""What holds for every registered sampler: one plan is a plain loop, many are a tree, and one point is reached."""

import itertools
import random
from typing import NamedTuple

import pytest
import torch

from idcompress import registry
from idcompress.bench.translate import load_sampler
from idcompress.core.ddim import Ddim, DrawnNoise, PathNoise, without_cache
from idcompress.core.plan import Plan, Step
from idcompress.core.process import (
    CLEAN,
    Prediction,
    RectifiedFlow,
    VariancePreserving,
    predict,
    scaled_linear_alphas_cumprod,
)
from idcompress.core.random import image_generator
from idcompress.core.sample import Moment, sample, sample_tree, shared_calls, trajectory, walk


class Weighted(Ddim):
    """A sampler that uses the plan's coefficients, and looks back on two steps."""

    ORDER = 3

    def advance(self, history, next_level, *, coefficients=None, noise=None):
        moved = super().advance(history, next_level)
        assert len(history) <= self.ORDER
        for weight, moment in zip(coefficients or (), reversed(history), strict=False):
            moved = moved + weight * moment.prediction.pred_original_sample
        return moved


REGISTERED = {name: load_sampler(name) for name in registry.names("sampler")}
SAMPLERS = REGISTERED | {"weighted": Weighted()}
ALPHAS = scaled_linear_alphas_cumprod()
VP, FLOW = VariancePreserving(ALPHAS), RectifiedFlow(1000)
START = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))


class Network:
    """A nonlinear network whose output depends on the step and on every step before it, by way of its cache.

    Attributes:
        calls: the steps from the first to the present one, of every call.
    """

    def __init__(self):
        self.calls = []

    def __call__(self, sample, step, cache):
        past = () if cache is None else cache
        self.calls.append((*past, step))
        depth = 1.0 if step.depth is None else 1 + 1 / step.depth
        memory = sum((-1) ** i * (s.timestep / 1000 + (s.depth or 13)) for i, s in enumerate(past))
        output = torch.tanh(depth * sample + step.timestep / 1000 + 0.01 * memory) + 0.1 * sample.roll(1, -1)
        return output, (*past, step)


def path_noise(seed=0):
    return PathNoise(VP, [image_generator(seed, index) for index in range(len(START))])


def noise_of(sampler):
    return path_noise() if sampler.STOCHASTIC else None


def row(plan, position):
    return None if plan.coefficients is None else plan.coefficients[position]


def by_hand(network, start, plan, process, sampler, *, noise=None, project=None):
    """The loop without a tree: one step after the other; the noise of a move, as the network's cache, is a state."""
    state, history, cache = start, [], None
    unit_state = None if noise is None else noise.begin(start, plan.timesteps[0])
    for position, step in enumerate(plan.steps):
        level = process.level(step.timestep)
        model_output, cache = network(state, step, cache)
        prediction = predict(model_output, state, level, process.prediction_type)
        if project is not None:
            prediction = project(prediction, level)
        history.append(Moment(step, level, state, prediction))
        if position + 1 == len(plan):
            return sampler.advance(history[-sampler.ORDER :], CLEAN, coefficients=row(plan, position))
        following, unit = plan.steps[position + 1].timestep, None
        if noise is not None:
            unit, unit_state = noise.between(unit_state, step.timestep, following)
        next_level = process.level(following)
        state = sampler.advance(history[-sampler.ORDER :], next_level, coefficients=row(plan, position), noise=unit)
    raise AssertionError


# One plan.

SINGLE = {
    "uniform": Plan.over([999, 749, 499, 249, 0]),
    "one step": Plan.over([640]),
    "uneven": Plan.over([981, 640, 3]),
    "depths": Plan((Step(981), Step(640, 9), Step(300, 3), Step(3, 9))),
    "coefficients": Plan(
        (Step(981), Step(640), Step(300), Step(3)), coefficients=((), (0.5,), (0.25, -0.5), (0.125, 0.5, 1.0))
    ),
}


@pytest.mark.parametrize("plan", SINGLE.values(), ids=SINGLE)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_one_plan_is_a_plain_loop_bit_for_bit(sampler, plan):
    network, alone = Network(), Network()
    found = sample(network, START, plan, VP, sampler, noise=noise_of(sampler))
    assert torch.equal(found, by_hand(alone, START, plan, VP, sampler, noise=noise_of(sampler)))
    assert network.calls == alone.calls == [plan.steps[: n + 1] for n in range(len(plan))]


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if not sampler.STOCHASTIC])
def test_a_flow_is_sampled_by_the_same_loop(name):
    plan, sampler = Plan.over([1000, 812.5, 333.25, 0.5]), SAMPLERS[name]
    found = sample(Network(), START, plan, FLOW, sampler)
    assert torch.equal(found, by_hand(Network(), START, plan, FLOW, sampler))
    assert found.isfinite().all()


def test_solvers_of_second_order_pass_over_repeats():
    """The others call the network again, which may be another one there."""
    plan, skipping = Plan((Step(900), Step(500, 9), Step(500, 3), Step(0), Step(0))), set()
    for name, sampler in REGISTERED.items():
        network = Network()
        found = sample(network, START, plan, VP, sampler, noise=noise_of(sampler))
        shorter = Plan((Step(900), Step(500, 9), Step(0)))
        if len(network.calls) == 3:
            skipping.add(name)
            assert torch.equal(found, sample(Network(), START, shorter, VP, sampler))
        else:
            assert network.calls[-1] == plan.steps
            assert torch.equal(found, by_hand(Network(), START, plan, VP, sampler, noise=noise_of(sampler)))
        assert len(network.calls) == shared_calls([plan], sampler)
    assert skipping == {"dpm_solver", "unipc"} == {name for name, one in REGISTERED.items() if one.SKIPS_REPEATS}


def test_repeats_that_are_passed_over_take_their_coefficients_along():
    """What is computed at a timestep is its first step's, and the move to the next one is its last step's."""

    class Skipping(Weighted):
        SKIPS_REPEATS = True

    steps = (Step(900), Step(500), Step(500), Step(0))
    plan = Plan(steps, coefficients=((1.0,), (2.0,), (3.0,), (4.0,)))
    shorter = Plan((Step(900), Step(500), Step(0)), coefficients=((1.0,), (3.0,), (4.0,)))
    found = sample(Network(), START, plan, VP, Skipping())
    assert torch.equal(found, sample(Network(), START, shorter, VP, Weighted()))


# Many plans.


def tree():
    """Plans that differ in their lists, depths, lengths and coefficients, most of which begin like another."""
    lists = [[900, 600, 300, 0], [900, 600, 300, 7], [900, 600, 100], [900, 600], [900], [800, 600, 300, 0]]
    lists += [[900, 750, 600, 300, 0]]
    plans = [Plan.over(timesteps) for timesteps in lists]
    plans += [
        Plan(tuple(map(Step, lists[0], depths))) for depths in itertools.product([9, 3, None], [9, None], [None], [5])
    ]
    rows = [
        ((0.5,),) * 4,
        ((0.5,), (0.5,), (0.25,), (0.5,)),
        ((0.5,), (0.75,), (0.5,), (0.5,)),
        ((0.5,),) * 3 + ((1.0,),),
    ]
    plans += [Plan(tuple(map(Step, lists[0])), coefficients=one) for one in rows]
    plans += [Plan(tuple(map(Step, lists[0][:2])), coefficients=((0.5,), (0.5,)))]
    random.Random(0).shuffle(plans)
    return plans


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_tree_gives_every_plan_what_it_gives_alone(sampler):
    """Bit for bit, with one call for every distinct beginning, each of which sees the steps of its own branch."""
    plans, network = tree()[: 12 if sampler.STOCHASTIC else None], Network()  # a path of noise takes its time
    found = list(sample_tree(network, START, [*plans, *plans[:3]], VP, sampler, noise=noise_of(sampler)))
    assert len(found) == len(plans) and {plan for plan, _ in found} == set(plans)
    for plan, final in found:
        assert torch.equal(final, sample(Network(), START, plan, VP, sampler, noise=noise_of(sampler)))
    assert len(network.calls) == shared_calls(plans) == shared_calls(plans, sampler)
    beginnings = {plan.steps[: n + 1] for plan in plans for n in range(len(plan))}
    assert set(network.calls) == beginnings
    assert len(network.calls) < 0.8 * sum(map(len, plans))


def test_the_calls_of_a_tree_by_hand():
    plans = [Plan.over([9, 5, 1]), Plan.over([9, 5, 0]), Plan.over([9, 5]), Plan.over([8, 5])]
    assert shared_calls(plans) == 2 + 2 + 2
    assert shared_calls([*plans, plans[0]]) == 6
    steps = plans[0].steps
    fitted = [Plan(steps, coefficients=((a,), (b,), (c,))) for a, b, c in [(1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1)]]
    assert shared_calls(fitted) == 1 + 2 + 3  # the last move needs no call
    assert shared_calls([*fitted, plans[0]]) == 1 + 3 + 4


def test_coefficients_decide_on_the_moves():
    """Else the branches of a fitted tree would be one and the same."""
    plans = [plan for plan in tree() if plan.coefficients is not None and len(plan) == 4]
    finals = [final for _, final in sample_tree(Network(), START, plans, VP, Weighted())]
    assert len(finals) == 4
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(finals, 2))


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.STOCHASTIC])
def test_branches_share_a_path_of_noise_and_leave_its_generators_alone(name):
    sampler, plans, noise = SAMPLERS[name], tree()[:5], path_noise()
    before = [generator.get_state() for generator in noise.generators]
    found = dict(sample_tree(Network(), START, plans, VP, sampler, noise=noise))
    again = dict(sample_tree(Network(), START, plans[::-1], VP, sampler, noise=noise))
    assert all(torch.equal(found[plan], again[plan]) for plan in plans)
    assert all(map(torch.equal, before, [generator.get_state() for generator in noise.generators]))
    other = dict(sample_tree(Network(), START, plans, VP, sampler, noise=path_noise(seed=1)))
    assert not any(torch.equal(found[plan], other[plan]) for plan in plans if len(plan) > 1)


def test_plans_of_different_kinds_are_no_tree():
    one = Plan.over([900, 0])
    for other in (
        Plan.over([900, 0], sampler="dpm_solver"),
        Plan.over([900, 0], guidance={"guidance_scale": 2.0}),
        Plan(one.steps, fill="hold"),
    ):
        with pytest.raises(ValueError, match="one sampler, one fill and one guidance"):
            list(sample_tree(Network(), START, [one, other], VP, Ddim()))


def test_timesteps_that_a_process_does_not_have_are_refused_before_the_first_call():
    network = Network()
    for timesteps in ([1000, 0], [900, 0.5]):
        with pytest.raises(ValueError, match=r"\[0, 999\]|whole numbers"):
            list(sample_tree(network, START, [Plan.over([500]), Plan.over(timesteps)], VP, Ddim()))
    assert not network.calls


# Projections.


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_every_prediction_is_projected(sampler):
    """A mask: the upper rows are known, and of the rest the network decides."""
    known, levels = torch.full_like(START[..., :1, :], 0.25), []

    def project(prediction, level):
        levels.append(level)
        fixed = torch.cat([known, prediction.pred_original_sample[..., 1:, :]], dim=-2)
        return Prediction(fixed, prediction.pred_epsilon)

    plan = SINGLE["uneven"]
    arguments = {"noise": noise_of(sampler), "project": project}
    found = sample(Network(), START, plan, VP, sampler, **arguments)
    assert levels == [VP.level(timestep) for timestep in plan.timesteps]
    assert torch.equal(found, by_hand(Network(), START, plan, VP, sampler, **arguments))
    assert torch.equal(found[..., :1, :], known)
    assert not torch.equal(found, sample(Network(), START, plan, VP, sampler, noise=noise_of(sampler)))


# Step by step.


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_trajectory_shows_every_step(sampler):
    plan = SINGLE["depths"]
    visits = list(trajectory(Network(), START, plan, VP, sampler, noise=noise_of(sampler)))
    assert [visit.position for visit in visits] == [0, 1, 2, 3]
    assert [visit.moment.step for visit in visits] == list(plan.steps)
    assert [visit.moment.level for visit in visits] == [VP.level(timestep) for timestep in plan.timesteps]
    assert torch.equal(visits[0].moment.sample, START)
    assert [len(visit.finished) for visit in visits] == [0, 0, 0, 1]
    ((finished, final),) = visits[-1].finished
    assert finished == plan
    assert torch.equal(final, sample(Network(), START, plan, VP, sampler, noise=noise_of(sampler)))


def test_a_caller_can_stop():
    network = Network()
    visits = walk(network, START, [SINGLE["uniform"]], VP, Ddim())
    next(visits), next(visits)
    visits.close()
    assert len(network.calls) == 2


# One point.


class Case(NamedTuple):
    process: object
    timesteps: list


def cases():
    """Random legal lists, half of them with repeats, and the extreme ones."""
    draw = random.Random(0)
    whole = [sorted((draw.randrange(1000) for _ in range(n)), reverse=True) for n in (2, 3, 8, 30)]
    whole += [sorted(draw.choices(range(0, 1000, 90), k=n), reverse=True) for n in (8, 30)]
    whole += [[0], [999], [402], [999, 0], [500] * 4, [999, 999, 0, 0]]
    real = [sorted((draw.uniform(0, 1000) for _ in range(n)), reverse=True) for n in (2, 8, 30)]
    real += [[1000], [1000, 0.5], [500.5] * 4, [1000, 1000, 0.5, 0.5], [1000, 700, 0]]
    kinds = [VariancePreserving(ALPHAS.double(), kind) for kind in ("epsilon", "v_prediction", "sample")]
    return [Case(kind, timesteps) for kind in kinds for timesteps in whole] + [Case(FLOW, one) for one in real]


@pytest.mark.parametrize("sampler", REGISTERED.values(), ids=REGISTERED)
def test_one_point_is_reached_over_any_list(sampler):
    """The exact network of data that is one point, in every prediction type, and any noise on the way."""
    point, epsilon = (
        torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2)
    )
    for process, timesteps in cases():
        first = process.level(timesteps[0])

        def denoise(state, timestep, process=process):
            signal, noise = process.level(timestep.item())
            there = (state - signal * point) / noise if noise else torch.zeros_like(state)
            return {
                "epsilon": there,
                "sample": point,
                "v_prediction": signal * there - noise * point,
                "flow": there - point,
            }[process.prediction_type]

        start = first.signal * point + first.noise * epsilon
        noise = DrawnNoise(torch.Generator().manual_seed(3)) if sampler.STOCHASTIC else None
        found = sample(without_cache(denoise), start, Plan.over(timesteps), process, sampler, noise=noise)
        assert found.dtype == start.dtype
        torch.testing.assert_close(found, point, atol=1e-5, rtol=0, msg=lambda m, t=timesteps: f"{t}: {m}")


@pytest.mark.parametrize("sampler", REGISTERED.values(), ids=REGISTERED)
def test_the_clean_level_is_the_predicted_image_itself(sampler):
    """However long the history, and whatever the coefficients' row is of a plan that has some."""
    moments = []
    for position, timestep in enumerate([900, 500, 100]):
        drawn = [torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(3 * position + i)) for i in range(3)]
        moments.append(Moment(Step(timestep), VP.level(timestep), drawn[0], Prediction(drawn[1], drawn[2])))
        found = sampler.advance(moments[-sampler.ORDER :], CLEAN)
        assert torch.equal(found, moments[-1].prediction.pred_original_sample)


@pytest.mark.parametrize("name", REGISTERED)
def test_a_sampler_names_its_source(name):
    assert "arXiv" in registry.load("sampler", name).SOURCE
