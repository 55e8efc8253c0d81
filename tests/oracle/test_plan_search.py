"""The search for a plan: against every plan of a small space, and where an oracle makes a saving free."""

import itertools
from dataclasses import replace
from functools import cache

import pytest
import torch

from idcompress.core.ddim import Ddim
from idcompress.core.plan import Plan, Step
from idcompress.core.plan_search import STRIDES, Menu, guidance_intervals, local_search, neighbours, patterned
from idcompress.core.process import VariancePreserving, scaled_linear_alphas_cumprod
from idcompress.core.reuse import Networks, Parts, computed, reusing
from idcompress.core.sample import sample, sample_tree

NODES = (999, 874, 749, 624, 499, 374, 249, 124)
NETWORKS = Networks(3, 1, False)
PROCESS = VariancePreserving(scaled_linear_alphas_cumprod(), "epsilon")
COSTS = {None: 3.0, 2: 2.0, 1: 1.0}


def toy(seed, deep=1.0):
    """A random network of three levels, each reading what the one below gives; `deep` is what the lower two add."""
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(4, 8, generator=generator) / 3 for _ in range(3)]

    def parts_at(step):
        depth = step.depth

        def outputs(state, timestep, passes, side, given):
            found, hidden = {}, torch.zeros(len(state), 4) if given is None else given
            for level in reversed(range(depth or 3)):
                if level < 2:
                    found[level + 1] = hidden
                mixed = torch.cat([state, hidden * deep], dim=1) @ levels[level].T
                hidden = torch.tanh(mixed + timestep / 1000)
            return (hidden,), {at: state for at, state in found.items() if at < (depth or 3)}

        return Parts(1, outputs, lambda outputs: outputs[0])

    return parts_at


def start():
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(9))


def scored(parts_at, reference):
    def score(plan):
        final = sample(reusing(parts_at, NETWORKS, plan.fill), start(), plan, PROCESS, Ddim())
        return -float((final - reference).square().mean())

    return cache(score)


def cost(plan):
    return sum(COSTS[step.depth] for step in computed(plan, NETWORKS).steps)


def searched(plan, menu, score, fits):
    better = lambda one, other: (score(one), -cost(one)) > (score(other), -cost(other))  # noqa: E731
    around = lambda one, stride: neighbours(one, menu, fits, stride)  # noqa: E731
    return local_search(plan, around, better, lambda *_: (1.0, 0.0), strides=(1,))


def reference(parts_at):
    plan = Plan.over(range(999, -1, -20))
    return sample(reusing(parts_at, NETWORKS, "hold"), start(), plan, PROCESS, Ddim())


@pytest.mark.parametrize("seed", range(1))
def test_brute_force_agrees_on_eight_nodes_with_three_actions(seed):
    """Every step computes one, two or all three levels, and half of the work is paid for."""
    parts_at, budget = toy(seed), 15.0
    score = scored(parts_at, target := reference(parts_at))
    plans = [
        Plan(tuple(map(Step, NODES, (None, *depths))), fill="hold")
        for depths in itertools.product((None, 2, 1), repeat=7)
    ]
    affordable = [plan for plan in plans if cost(plan) <= budget]
    finals = sample_tree(reusing(parts_at, NETWORKS, "hold"), start(), affordable, PROCESS, Ddim())
    best = max(-float((final - target).square().mean()) for _, final in finals)
    menu = Menu(("depth",), (), (1, 2), ("ddim",), ("hold",))
    fits = lambda plan: cost(plan) <= budget  # noqa: E731
    seeds = [
        Plan(patterned(NODES, pattern, 1), fill="hold") for pattern in ("every_2nd", "every_3rd", "first", "front")
    ]
    found = max((searched(plan, menu, score, fits) for plan in seeds if fits(plan)), key=score)
    assert fits(found)
    assert score(found) == pytest.approx(best, rel=1e-6)


def test_a_saving_that_costs_nothing_is_found():
    """Where the deep levels do nothing, no plan computes them twice, and the budget goes into steps."""
    parts_at = toy(0, deep=0.0)
    score, fits = scored(parts_at, reference(parts_at)), lambda plan: cost(plan) <= 8.0
    menu = Menu(("timesteps", "depth"), (), (1, 2), ("ddim",), ("hold",))
    full = Plan(tuple(map(Step, (999, 500))), fill="hold")
    found = searched(full, menu, score, fits)
    assert [step.depth for step in computed(found, NETWORKS).steps] == [None, *[1] * 5]
    assert score(found) > score(full)


@pytest.mark.parametrize("stride", STRIDES)
def test_no_stride_is_too_long_for_nodes_that_are_close(stride):
    menu = Menu(("timesteps", "depth"), (), (3, 7), ("ddim",), ("hold",))
    for nodes in ((999, 64, 63, 40), (70, 69, 3), (999, 998, 997), (5,)):
        for one in neighbours(Plan.over(nodes), menu, lambda one: len(one) <= 5, stride):
            assert all(a > b for a, b in itertools.pairwise(one.timesteps))
            assert one.timesteps[0] <= 999 and one.timesteps[-1] >= 0


def test_neighbours_stay_in_the_menu_and_the_budget():
    menu = Menu(
        ("timesteps", "depth", "refresh", "fill", "sampler"), (), (3, 7), ("ddim", "fitted"), ("hold", "linear")
    )
    plan = Plan((Step(999), Step(700, 7), Step(400, 3), Step(100, 3, refresh=False)), fill="hold")
    weigh = lambda one: sum({None: 13, 7: 7, 3: 3}[step.depth] for step in one.steps)  # noqa: E731
    found = list(neighbours(plan, menu, lambda one: weigh(one) <= weigh(plan), 16))
    assert len(found) == len(set(found)) and plan not in found
    for one in found:
        assert weigh(one) <= weigh(plan)
        assert all(a > b for a, b in itertools.pairwise(one.timesteps)) and one.timesteps[0] <= 999
        assert {step.depth for step in one.steps} <= {None, 3, 7} and one.fill in menu.fills
    assert {one.sampler for one in found} == {"ddim", "fitted"}
    assert {len(one) for one in found} >= {3, 4}
    whole = Plan(tuple(map(Step, (999, 500))), fill="hold")  # leaves nothing out, so that another fill changes nothing
    assert not list(neighbours(whole, Menu(("fill",), (), (), ("ddim",), ("hold", "linear")), lambda one: True, 64))
    only = Menu(("timesteps",), (), (), ("ddim",), ("zero",))
    shifted = list(neighbours(Plan.over((999, 500)), only, lambda one: len(one) <= 2, 64))
    assert sorted(one.timesteps for one in shifted) == [(500,), (935, 500), (999,), (999, 436), (999, 564)]


def test_guidance_intervals_are_seeds_where_steps_may_go_without():
    plan = Plan(tuple(map(Step, NODES)))
    menu = Menu(("passes",), (), (), ("ddim",), ("zero",), ("all", "text"))
    passes = [[step.passes for step in one.steps] for one in guidance_intervals(plan, menu)]
    assert passes == [["all"] * 4 + ["text"] * 4, ["text"] * 2 + ["all"] * 4 + ["text"] * 2]
    assert not list(guidance_intervals(plan, replace(menu, passes=("all",))))
    assert not list(guidance_intervals(plan, replace(menu, moves=())))


@pytest.mark.parametrize(
    ("pattern", "depths"),
    [
        ("full", [None] * 5),
        ("every_2nd", [None, 3, None, 3, None]),
        ("every_3rd", [None, 3, 3, None, 3]),
        ("growing", [None, None, 3, None, 3]),
        ("first", [None, 3, 3, 3, 3]),
        ("front", [None, None, None, 3, 3]),
        ("one_depth", [3] * 5),
    ],
)
def test_patterns(pattern, depths):
    assert [step.depth for step in patterned(range(5, 0, -1), pattern, 3)] == depths
