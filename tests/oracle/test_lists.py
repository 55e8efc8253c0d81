"""Searches for lists against brute force, counts and bounds, without a network."""

import itertools
import math
import random

import pytest
import torch

from idcompress import registry
from idcompress.core.ddim import Ddim, ddim_step, without_cache
from idcompress.core.dynamic_programme import cheapest_ways, jump_costs
from idcompress.core.evolution import evolve, evolve_layers
from idcompress.core.pattern import pattern_descent
from idcompress.core.plan import Plan
from idcompress.core.process import CLEAN, Prediction, RectifiedFlow, VariancePreserving, scaled_linear_alphas_cumprod
from idcompress.core.sample import trajectory
from idcompress.errors import IdcError
from idcompress.types import ScheduleRequest, Teacher

VP, FLOW = VariancePreserving(scaled_linear_alphas_cumprod().double()), RectifiedFlow()


def run_of(original, timesteps, process):
    """A many-step run of a network that predicts this x_0: timesteps, samples, predictions, end."""

    def denoise(state, timestep):
        level = process.level(timestep.item())
        x0 = original(state, level)
        return state - x0 if process is FLOW and level.signal == 0 else _output(x0, state, level, process)

    start = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    visits = list(trajectory(without_cache(denoise), start, Plan.over(timesteps), process, Ddim()))
    samples = torch.stack([visit.moment.sample for visit in visits])
    originals = torch.stack([visit.moment.prediction.pred_original_sample for visit in visits])
    return timesteps, samples, originals, visits[-1].finished[0][1]


def _output(x0, state, level, process):
    epsilon = (state - level.signal * x0) / level.noise
    return epsilon - x0 if process is FLOW else epsilon


def clusters(state, level):
    variance = 0.2 * level.signal**2 + level.noise**2
    mean = torch.tanh(level.signal * state / variance)
    return mean + level.signal * 0.2 / variance * (state - level.signal * mean)


EIGHT = {VP: [999, 880, 700, 480, 300, 150, 40], FLOW: [1000, 850, 700, 500, 300, 150, 40]}  # and the end


@pytest.mark.parametrize("process", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("metric", ["dev", "l2"])
@pytest.mark.parametrize("discount", [0.8, 1.0, 1.15])
def test_the_dynamic_programme_agrees_with_brute_force(process, metric, discount):
    """Over eight nodes, every number of jumps."""
    costs = jump_costs(*run_of(clusters, EIGHT[process], process), process, metric=metric)
    ways = cheapest_ways(costs, 10, discount=discount)
    assert list(ways) == [1, 2, 3, 4, 5, 6, 7]

    def cost(way):
        jumps = [costs[i][j] for i, j in itertools.pairwise((*way, 7))]
        return sum(one * discount**number for number, one in enumerate(jumps))

    for count, way in ways.items():
        every = [(0, *inner) for inner in itertools.combinations(range(1, 7), count - 1)]
        assert cost(way) == pytest.approx(min(map(cost, every)), rel=1e-12, abs=1e-15)
    assert ways[7] == list(range(7))


@pytest.mark.parametrize("metric", ["dev", "l2"])
def test_the_costs_are_those_of_single_moves(metric):
    """By DDIM's own step, in units of x / signal, where a step is Euler's."""
    timesteps, samples, originals, final = run_of(clusters, EIGHT[VP], VP)
    costs = jump_costs(timesteps, samples, originals, final, VP, metric=metric)
    levels = [*map(VP.level, timesteps), CLEAN]
    states = [state / level.signal for state, level in zip([*samples, final], levels, strict=True)]
    for i, j in itertools.combinations(range(8), 2):
        epsilon = (samples[i] - levels[i].signal * originals[i]) / levels[i].noise
        jumped = ddim_step(Prediction(originals[i], epsilon), levels[i], levels[j]) / levels[j].signal
        wanted = []
        for image in range(5):
            a, b, p, own = (x[image].flatten() for x in (states[0], states[-1], jumped, states[j]))
            if metric == "l2":
                wanted.append((p - own).norm().item())
                continue

            def off(q, a=a, b=b):
                return ((q - a) - (q - a).dot(b - a) / (b - a).dot(b - a) * (b - a)).norm().item()

            wanted.append(off(p) - off(own))
        assert costs[i][j] == pytest.approx(sum(wanted) / 5, rel=1e-9, abs=1e-9)
        assert costs[j][i] == costs[i][i] == math.inf


@pytest.mark.parametrize("metric", ["dev", "l2"])
@pytest.mark.parametrize("process", [VP, FLOW], ids=["vp", "flow"])
def test_on_a_straight_way_every_list_costs_nothing(process, metric):
    point = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    costs = jump_costs(*run_of(lambda state, level: point, EIGHT[process], process), process, metric=metric)
    assert all(abs(costs[i][j]) < 1e-9 for i, j in itertools.combinations(range(8), 2))


def test_more_steps_than_the_run_has_are_refused():
    teacher = Teacher(*run_of(clusters, EIGHT[VP], VP))
    gits = registry.load("timesteps", "gits")
    with pytest.raises(IdcError, match=r"the 7 timesteps.*num_inference_steps=8; raise tsopt\.reference_steps"):
        gits.timesteps(ScheduleRequest(8, VP, score=lambda timesteps, **_: 0.0, teacher=lambda: teacher))
    alone = gits.timesteps(ScheduleRequest(7, VP, teacher=lambda: teacher), discounts=[1.1])
    assert alone.timesteps == EIGHT[VP]


class Counted:
    """A score that is best for one list, and what it was asked."""

    def __init__(self, best):
        self.best, self.asked = best, []

    def __call__(self, nodes):
        assert nodes not in self.asked, "a list was scored twice"
        self.asked.append(nodes)
        return float(-sum(abs(a - b) for a, b in zip(nodes, self.best, strict=True)))


def test_autodiffusion_scores_499_lists():
    """With its defaults; the best one only ever improves, and every list is legal."""
    score = Counted((950, 700, 420, 200, 30))
    found = evolve(score, 5, first=(999, 749, 499, 249, 0), seed=3)
    assert found.evaluations == len(score.asked) == 499
    assert all(len(set(nodes)) == 5 and list(nodes) == sorted(nodes, reverse=True) for nodes in score.asked)
    assert all(0 <= timestep <= 999 for nodes in score.asked for timestep in nodes)
    assert found.value == max(-sum(abs(a - b) for a, b in zip(n, score.best, strict=True)) for n in score.asked)
    first = score.asked[:49]
    assert found.value > max(-sum(abs(a - b) for a, b in zip(n, score.best, strict=True)) for n in first)
    again = Counted(score.best)
    assert evolve(again, 5, first=(999, 749, 499, 249, 0), seed=3) == found and again.asked == score.asked
    assert evolve(Counted(score.best), 5, first=(999, 749, 499, 249, 0), seed=4) != found


def test_layers_that_are_passed_by_pay_for_further_steps():
    """Every individual runs at most as many layers as whole steps would; shares open from 0, and layers do change."""
    asked = []

    def score(calls):  # a step is worth 1, and a layer that is passed by, other than the third, costs a tenth
        asked.append(calls)
        return len(calls) - sum(layer != 3 for _, skipped in calls for layer in skipped) / 10

    first = (999, 749, 499, 249, 0)
    found = evolve_layers(score, 5, 8, most_skipped=0.2, first=first, seed=1)
    assert found.evaluations == len(asked) == len({*asked}) == 749
    for calls in asked:
        nodes, skipped = [node for node, _ in calls], [layer for _, layers in calls for layer in layers]
        assert nodes == sorted({*nodes}, reverse=True) and 0 <= nodes[-1] <= nodes[0] <= 999
        assert all(list(layers) == sorted({*layers}) and {*layers} <= {*range(8)} for _, layers in calls)
        assert len(calls) * 8 - len(skipped) <= 5 * 8 and len(skipped) <= 0.2 * len(calls) * 8
    assert not any(layers for calls in asked[:49] for _, layers in calls)
    assert {len(calls) for calls in asked} == {5, 6}
    assert len(found.best) == 6 and found.value > 5.3  # eight layers pay for the sixth step, some of them the free one
    assert evolve_layers(score, 5, 8, most_skipped=0.2, first=first, seed=1) == found
    assert evolve_layers(score, 5, 8, most_skipped=0.0, epochs=3, seed=1).best[0][1] == ()


def test_a_descent_finds_the_best_list_and_is_never_worse_than_its_start():
    draw = random.Random(0)
    for _ in range(20):
        best, start = (tuple(sorted(draw.sample(range(1000), 4), reverse=True)) for _ in range(2))
        score = Counted(best)
        whole = pattern_descent(score, start, budget=10_000)
        assert (whole.nodes, whole.value, whole.ended) == (best, 0, "converged")
        assert whole.evaluations == len(score.asked)
        for budget in (1, 7, 25):
            score = Counted(best)
            short = pattern_descent(score, start, budget=budget)
            assert len(score.asked) == short.evaluations <= budget
            assert short.value >= Counted(best)(start)
            assert all(a > b for nodes in score.asked for a, b in itertools.pairwise(nodes))


def test_a_descent_ends_where_two_rounds_gain_too_little():
    score = Counted((950, 700, 420, 200))
    found = pattern_descent(score, (940, 690, 410, 190), budget=1000, tolerance=1000.0)
    assert found.ended == "no gain"
    assert len(score.asked) < 20


def test_a_descent_ends_where_nothing_can_be_better():
    """All pictures equal their references, say: that scores infinity."""
    assert pattern_descent(lambda nodes: math.inf, (900, 500), budget=1000).value == math.inf


def test_a_descent_asks_for_nothing_that_is_known():
    score, known = Counted((900, 500)), {}
    first = pattern_descent(score, (800, 400), budget=1000, known=known)
    again = pattern_descent(score, (800, 400), budget=0, known=known)
    assert again.nodes == first.nodes and again.evaluations == 0


def test_a_descent_may_race():
    """Told which list is better, it takes the same way and scores what rounds end with; told lies, it loses nothing."""
    draw = random.Random(5)
    for _ in range(10):
        target, start = (tuple(sorted(draw.sample(range(1000), 4), reverse=True)) for _ in range(2))
        score, raced = Counted(target), Counted(target)

        def value(nodes, target=target):
            return Counted(target)(nodes)

        whole = pattern_descent(score, start, budget=60, tolerance=1.0)
        found = pattern_descent(raced, start, budget=60, tolerance=1.0, better=lambda a, b: value(a) > value(b))
        assert found == whole
        assert len(raced.asked) < len(score.asked) / 2
        for lie in (True, False):
            misled = Counted(target)
            found = pattern_descent(misled, start, budget=30, better=lambda *_, lie=lie: lie)
            assert found.value == value(found.nodes) >= value(start)
            assert len(set(misled.asked)) == len(misled.asked) <= found.evaluations <= 30
