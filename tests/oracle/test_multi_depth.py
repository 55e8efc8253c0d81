"""Multi-depth plans: the tree against one `ddim_sample` per plan, the choice against its definition."""

import itertools
import math
import random

import pytest
import torch

from idcompress.core.ddim import ddim_sample, without_cache
from idcompress.core.multi_depth import ScoredPlan, depth_plans, network_calls, pareto_front, rivals, sample_depths
from idcompress.core.process import VariancePreserving, scaled_linear_alphas_cumprod
from idcompress.core.timestep_search import gamma_timesteps

ALPHAS = scaled_linear_alphas_cumprod()


class Networks(dict):
    """A different nonlinear model per depth; counts every call."""

    def __init__(self, depths):
        self.calls = []
        super().__init__({depth: self.model(depth) for depth in depths})

    def model(self, depth):
        def denoise(sample, timestep):
            self.calls.append((depth, int(timestep)))
            return torch.tanh(sample * (1 + 1 / depth) + timestep / 1000) + 0.1 * depth * sample.roll(1, -1)

        return denoise


def sample_plans(networks, sample, timesteps, alphas_cumprod, plans, prediction_type="epsilon"):
    denoise = {depth: without_cache(network) for depth, network in networks.items()}
    return sample_depths(denoise, sample, timesteps, VariancePreserving(alphas_cumprod, prediction_type), plans)


def one_by_one(networks, sample, timesteps, plans, prediction_type="epsilon"):
    """What the tree replaces: every plan from its first step to its last."""
    results = {}
    for plan in plans:
        depth = iter(plan)
        results[plan] = ddim_sample(
            lambda sample, timestep, depth=depth: networks[next(depth)](sample, timestep),
            sample,
            timesteps,
            ALPHAS,
            prediction_type=prediction_type,
        )
    return results


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("num_inference_steps", "steps_per_depth"), [(6, 2), (5, 2), (4, 1), (1, 2), (3, 3)])
def test_the_tree_is_the_naive_enumeration(num_inference_steps, steps_per_depth, prediction_type):
    plans = depth_plans([7, 9, 12], num_inference_steps, steps_per_depth)
    timesteps = gamma_timesteps(1.0, num_inference_steps)
    sample = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    tree, naive = Networks([7, 9, 12]), Networks([7, 9, 12])
    found = dict(sample_plans(tree, sample, timesteps, ALPHAS, plans, prediction_type=prediction_type))
    expected = one_by_one(naive, sample, timesteps, plans, prediction_type)

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[plan], expected[plan]) for plan in plans)
    assert len(tree.calls) == network_calls(plans)
    assert len(naive.calls) == len(plans) * num_inference_steps

    def scored(results):
        return [ScoredPlan(plan, (-float(results[plan].square().mean()),), math.fsum(plan)) for plan in plans]

    slack = {"quality_slack": [0.1], "cost_slack": 0.01}
    assert rivals(scored(found), 9, **slack) == rivals(scored(expected), 9, **slack)


@pytest.mark.parametrize(
    ("num_depths", "num_inference_steps", "calls", "naive"),
    [(6, 10, 18_660, 77_760), (3, 12, 2_184, 8_748), (3, 10, 726, 2_430)],
)
def test_calls_of_the_exhaustive_search(num_depths, num_inference_steps, calls, naive):
    """2 (D + D^2 + ... + D^G) in place of S D^G: under a quarter for the paper's six depths and the default."""
    plans = depth_plans(range(num_depths), num_inference_steps, 2)
    assert network_calls(plans) == calls
    assert sum(map(len, plans)) == naive


def test_plans_share_depths_in_groups():
    assert depth_plans([9, 7, 9], 3, 2) == [(7, 7, 7), (7, 7, 9), (9, 9, 7), (9, 9, 9)]
    plans = depth_plans([7, 8, 9], 10, 2)
    assert len(plans) == len(set(plans)) == 3**5
    assert all(plan[0::2] == plan[1::2] for plan in plans)


def test_any_set_of_plans_in_any_order():
    plans = [(9, 7, 7), (7, 7, 9), (9, 7, 9), (9, 7, 7)]
    networks = Networks([7, 9])
    sample = torch.ones(1, 4, 2, 2)
    found = dict(sample_plans(networks, sample, [900, 400, 400], ALPHAS, plans))
    assert networks.calls == [(7, 900), (7, 400), (9, 400), (9, 900), (7, 400), (7, 400), (9, 400)]
    assert network_calls(plans) == 7
    expected = one_by_one(Networks([7, 9]), sample, [900, 400, 400], set(plans))
    assert all(torch.equal(found[plan], expected[plan]) for plan in expected)


def test_a_plan_of_another_length():
    with pytest.raises(ValueError, match=r"each of the 2 timesteps, got \(7, 7, 7\)"):
        sample_plans(Networks([7]), torch.ones(1, 4, 2, 2), [900, 0], ALPHAS, [(7, 7, 7)])


def some_scores(seed, qualities=1):
    draw = random.Random(seed)
    cost = {7: 72.6, 8: 80.0, 9: 82.8, 10: 85.7}
    return [
        ScoredPlan(
            plan,
            tuple(round(sum(plan) / len(plan) + draw.gauss(0, 0.5), 2) for _ in range(qualities)),
            math.fsum(cost[depth] for depth in plan) / len(plan),
        )
        for plan in itertools.product(cost, repeat=3)
    ]


@pytest.mark.parametrize("qualities", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_rivals_by_their_definition(seed, qualities):
    scored = some_scores(seed, qualities)
    for depth in (7, 8, 9, 10):
        found = rivals(scored, depth, quality_slack=[0.2] * qualities, cost_slack=0.01)
        single = found.single
        assert single.plan == (depth,) * 3
        good = [s for s in scored if all(s.qualities[i] >= single.qualities[i] - 0.2 for i in range(qualities))]
        cheap = [s for s in scored if s.cost <= 1.01 * single.cost]
        assert found.same_size in good
        assert max(found.same_size.plan) == depth
        assert found.same_size.cost == min(s.cost for s in good if max(s.plan) == depth)
        assert found.same_quality in good
        assert found.same_quality.cost == min(s.cost for s in good)
        for index, best in enumerate(found.same_cost):
            assert best in cheap
            assert best.qualities[index] == max(s.qualities[index] for s in cheap)


def test_the_single_depth_stays_where_nothing_beats_it():
    scored = [ScoredPlan(plan, (float(sum(plan)),), float(sum(plan))) for plan in depth_plans([7, 9], 4, 2)]
    found = rivals(scored, 7, quality_slack=[0.0], cost_slack=0)
    assert {found.same_size, *found.same_cost, found.same_quality} == {found.single}
    with pytest.raises(ValueError, match="depth 8 at every step"):
        rivals(scored, 8, quality_slack=[0.0], cost_slack=0)


def test_pareto_front():
    scored = some_scores(0)
    front = pareto_front(reversed(scored))
    dominated = [s for s in scored if not any(o.cost <= s.cost and o.qualities > s.qualities for o in scored)]
    assert {(one.cost, one.qualities) for one in front} == {
        (s.cost, s.qualities)
        for s in dominated
        if not any(o.cost < s.cost and o.qualities >= s.qualities for o in scored)
    }
    assert [one.cost for one in front] == sorted({one.cost for one in front})
