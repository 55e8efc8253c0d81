"""Lists of timesteps by dynamic programming over the jumps between the states of a many-step run.

A jump from one state of the run to a later level has a cost: how far one DDIM move leads away from the run. With a
discount for what comes later, the cheapest way of n jumps is found for every n from one matrix of costs.

Source: Chen et al., On the Trajectory Regularity of ODE-based Diffusion Sampling, arXiv 2405.11326, Sec. 4.
"""

import math
from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from .process import CLEAN, Process

Metric = Literal["dev", "l2"]
DISCOUNTS = (1.0, 1.05, 1.1, 1.15, 1.2)  # around the authors' 1.15


def jump_costs(
    timesteps: Sequence[float | int],
    samples: Float[Tensor, "steps b ..."],
    originals: Float[Tensor, "steps b ..."],
    final: Float[Tensor, "b ..."],
    process: Process,
    *,
    metric: Metric = "dev",
) -> list[list[float]]:
    """The cost of a jump from state i to state j > i, averaged over images; entry [i][j], infinite for others.

    Everything is measured in units in which DDIM moves along straight lines: of x / signal, or, where a run begins
    without signal, of x / (signal + noise).

    Args:
        timesteps, samples, originals, final: the run, as in `idcompress.types.Teacher`; its end is the last state.
        metric: "dev", how much farther the jump leads from the straight line through the run's ends than the run itself
            is there; "l2", the distance from the run's own state.
    """
    levels = [*(process.level(timestep) for timestep in timesteps), CLEAN]
    units = [level.signal if levels[0].signal > 0 else level.signal + level.noise for level in levels]
    noises = [level.noise / unit for level, unit in zip(levels, units, strict=True)]
    states = [sample.double().flatten(1) / unit for sample, unit in zip([*samples, final], units, strict=True)]
    count = len(levels)
    costs = [[math.inf] * count for _ in range(count)]
    line = states[-1] - states[0]
    line = line / line.norm(dim=1, keepdim=True).clamp_min(1e-300)

    def off_line(state: Tensor) -> Tensor:
        offset = state - states[0]
        beside: Tensor = offset - (offset * line).sum(1, keepdim=True) * line
        return beside

    own = [off_line(state).norm(dim=1) for state in states]
    for i in range(count - 1):
        clean, here = originals[i].double().flatten(1), states[i]
        for j in range(i + 1, count):
            kept = noises[j] / noises[i] if noises[i] > 0 else 1.0
            jumped = clean + kept * (here - clean)
            if metric == "l2":
                costs[i][j] = float((jumped - states[j]).norm(dim=1).mean())
            else:
                costs[i][j] = float((off_line(jumped).norm(dim=1) - own[j]).mean())
    return costs


def cheapest_ways(costs: Sequence[Sequence[float]], most: int, *, discount: float | int) -> dict[int, list[int]]:
    """The cheapest way from the first state to the last by n jumps, for every n up to `most` that is possible.

    A way costs its first jump plus `discount` times what the rest costs; more than 1 makes late jumps matter more.

    Returns:
        n -> the states that are jumped from, n of them.
    """
    count = len(costs)
    value, following = [0.0 if i == count - 1 else math.inf for i in range(count)], list[list[int]]()
    ways = {}
    for jumps in range(1, min(most, count - 1) + 1):
        best = [
            min(((costs[i][j] + discount * value[j], j) for j in range(i + 1, count)), default=(math.inf, i))
            for i in range(count)
        ]
        value = [cost for cost, _ in best]
        following.append([j for _, j in best])
        if value[0] < math.inf:
            way, state = [], 0
            for step in reversed(following):
                way.append(state)
                state = step[state]
            ways[jumps] = way
    return ways


def lists_by_discount(
    timesteps: Sequence[float | int], costs: Sequence[Sequence[float]], count: int, discounts: Sequence[float | int]
) -> dict[tuple[float | int, ...], float | int]:
    """The cheapest lists of so many timesteps, each with the first discount that gives it."""
    found: dict[tuple[float | int, ...], float | int] = {}
    for discount in discounts:
        way = cheapest_ways(costs, count, discount=discount)[count]
        found.setdefault(tuple(timesteps[state] for state in way), discount)
    return found
