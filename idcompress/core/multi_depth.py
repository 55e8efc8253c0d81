"""A depth for every sampling step, against one depth for all steps.

All choices are sampled as one tree: trajectories are the same as long as their depths are, and a shared beginning is
computed once.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from .ddim import Ddim
from .plan import Plan, Step
from .process import Process
from .sample import Denoise, sample_tree

Depths = tuple[int, ...]


def depth_plans(depths: Iterable[int], num_inference_steps: int, steps_per_depth: int) -> list[Depths]:
    """Every choice of depths that steps share in groups.

    Args:
        depths: the choices, each used once.
        steps_per_depth: consecutive steps of one depth; the last group is shorter where it does not divide the steps.

    Returns:
        D^ceil(S / steps_per_depth) choices of S depths each.

    Source: Kim et al., ACCV 2024, Sec. 3.2.1: depths 7 to 12, 10 steps, 2 per depth.
    """
    groups = math.ceil(num_inference_steps / steps_per_depth)
    chosen = itertools.product(sorted(set(depths)), repeat=groups)
    return [tuple(plan[step // steps_per_depth] for step in range(num_inference_steps)) for plan in chosen]


def network_calls(choices: Iterable[Depths]) -> int:
    """Calls of the network with which `sample_depths` samples one batch: one for every distinct beginning."""
    return len({depths[:length] for depths in choices for length in range(1, len(depths) + 1)})


def sample_depths(
    denoise: Mapping[int, Denoise],
    sample: Float[Tensor, "b ..."],
    timesteps: Sequence[float | int],
    process: Process,
    choices: Iterable[Depths],
) -> Iterator[tuple[Depths, Tensor]]:
    """Deterministic DDIM once per choice of depths, as one tree.

    Args:
        denoise: by depth.
        choices: a depth per timestep each; repetitions count once.
        sample, timesteps, process: as in `core.sample.walk`.

    Yields:
        Each choice, in ascending order, and its final sample (B, ...).

    Raises:
        ValueError: a choice has another length than the list, or the process does not have these timesteps.
    """
    choices = list(choices)
    for depths in choices:
        if len(depths) != len(timesteps):
            raise ValueError(f"there must be a depth for each of the {len(timesteps)} timesteps, got {depths}")

    def at_depth(sample: Tensor, step: Step, cache: Any) -> tuple[Tensor, Any]:
        assert step.depth is not None
        return denoise[step.depth](sample, step, cache)

    plans = [Plan(tuple(map(Step, timesteps, depths))) for depths in choices]
    finals = sample_tree(at_depth, sample, plans, process, Ddim())
    return ((tuple(step.depth or 0 for step in plan.steps), final) for plan, final in finals)


@dataclass(frozen=True)
class ScoredPlan:
    """A plan, its qualities (higher is better, in a fixed order) and its cost (in any unit, the mean over steps)."""

    plan: Depths
    qualities: tuple[float, ...]
    cost: float

    @property
    def depth(self) -> int:
        """The greatest depth of any step, which decides how much of the network must be stored."""
        return max(self.plan)


@dataclass(frozen=True)
class Rivals:
    """The best multi-depth plans to compare with a single depth, whose own plan is a candidate in every comparison.

    Attributes:
        single: the plan of one depth.
        same_size: the cheapest of the same size and quality.
        same_cost: for each quality, the best of it at the same cost, whatever its size.
        same_quality: the cheapest of the same quality, whatever its size.
    """

    single: ScoredPlan
    same_size: ScoredPlan
    same_cost: tuple[ScoredPlan, ...]
    same_quality: ScoredPlan


def rivals(
    scored: Sequence[ScoredPlan], depth: int, *, quality_slack: Sequence[float | int], cost_slack: float | int
) -> Rivals:
    """Compare the plans with the one that has `depth` at every step.

    Args:
        scored: every plan, that one included.
        quality_slack: what a plan of "the same" quality may lack, one bound per quality; all must hold.
        cost_slack: what a plan of "the same" cost may cost more, as a share.

    Raises:
        ValueError: no plan has this depth at every step.

    Source: Kim et al., ACCV 2024, Tab. 1 and S6: 0.2 dB (0.005 of CLIP similarities) and 1 % of time.
    """
    single = next((one for one in scored if set(one.plan) == {depth}), None)
    if single is None:
        raise ValueError(f"no plan has depth {depth} at every step")
    bounds = [quality - slack for quality, slack in zip(single.qualities, quality_slack, strict=True)]
    as_good = [one for one in scored if all(q >= b for q, b in zip(one.qualities, bounds, strict=True))]
    as_cheap = [one for one in scored if one.cost <= single.cost * (1 + cost_slack)]

    def cheapest(candidates: Iterable[ScoredPlan]) -> ScoredPlan:
        return min(candidates, key=lambda one: (one.cost, [-quality for quality in one.qualities], one.plan))

    def best(index: int) -> ScoredPlan:
        return min(as_cheap, key=lambda one: (-one.qualities[index], one.cost, one.plan))

    return Rivals(
        single,
        same_size=cheapest(one for one in as_good if one.depth == depth),
        same_cost=tuple(best(index) for index in range(len(single.qualities))),
        same_quality=cheapest(as_good),
    )


def pareto_front(scored: Iterable[ScoredPlan]) -> list[ScoredPlan]:
    """The plans than which none is better in the first quality at the same or less cost, by rising cost."""
    front: list[ScoredPlan] = []
    for one in sorted(scored, key=lambda one: (one.cost, -one.qualities[0], one.plan)):
        if not front or one.qualities[0] > front[-1].qualities[0]:
            front.append(one)
    return front
