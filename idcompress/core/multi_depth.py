"""Multi-depth plans, which give every sampling step a depth of its own, against one depth for all steps.

All plans are sampled as one tree: trajectories are the same as long as their plans are, and a shared start is computed
once.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .ddim import ddim_step, predict
from .noise_schedule import check_timesteps

Plan = tuple[int, ...]


def depth_plans(depths: Iterable[int], num_inference_steps: int, steps_per_depth: int) -> list[Plan]:
    """Every plan whose steps share a depth in groups.

    Args:
        depths: the choices, each used once.
        steps_per_depth: consecutive steps of one depth; the last group is shorter where it does not divide the steps.

    Returns:
        D^ceil(S / steps_per_depth) plans of S depths each.

    Source: Kim et al., ACCV 2024, Sec. 3.2.1: depths 7 to 12, 10 steps, 2 per depth.
    """
    groups = math.ceil(num_inference_steps / steps_per_depth)
    chosen = itertools.product(sorted(set(depths)), repeat=groups)
    return [tuple(plan[step // steps_per_depth] for step in range(num_inference_steps)) for plan in chosen]


def network_calls(plans: Iterable[Plan]) -> int:
    """Calls of the network with which `sample_plans` samples one batch: one for every distinct start of a plan."""
    return len({plan[:length] for plan in plans for length in range(1, len(plan) + 1)})


def sample_plans(
    denoise: Mapping[int, Callable[[Tensor, Tensor], Tensor]],
    sample: Float[Tensor, "b ..."],
    timesteps: Iterable[int] | Tensor,
    alphas_cumprod: Float[Tensor, " num_train_timesteps"],
    plans: Iterable[Plan],
    *,
    prediction_type: str = "epsilon",
) -> Iterator[tuple[Plan, Tensor]]:
    """`ddim_sample` at eta 0 once per plan, depth first over the tree of the plans.

    Args:
        denoise: by depth, (sample (B, ...), timestep, a 0-d int64 tensor) -> model_output (B, ...).
        plans: a depth per timestep each; repetitions count once.
        sample, timesteps, alphas_cumprod, prediction_type: as in `ddim_sample`.

    Yields:
        Each plan, in ascending order, and the result (B, ...) of `ddim_sample` with its depths, bit for bit. No more
        than S + 1 samples are alive at a time.

    Raises:
        ValueError: a plan has another length than the list, or `check_timesteps` refuses the list.
    """
    steps = check_timesteps(timesteps, len(alphas_cumprod))
    levels = [float(alphas_cumprod[t]) for t in steps]
    tree = sorted(set(plans))
    for plan in tree:
        if len(plan) != len(steps):
            raise ValueError(f"a plan must hold a depth for each of the {len(steps)} timesteps, got {plan}")

    def walk(sample: Tensor, position: int, plans: Sequence[Plan]) -> Iterator[tuple[Plan, Tensor]]:
        if position == len(steps):
            yield plans[0], sample
            return
        level, next_level = levels[position], levels[position + 1] if position + 1 < len(steps) else None
        for depth, branch in itertools.groupby(plans, key=lambda plan: plan[position]):
            model_output = denoise[depth](sample, torch.tensor(steps[position], device=sample.device))
            prediction = predict(model_output, sample, level, prediction_type)
            yield from walk(ddim_step(prediction, level, next_level), position + 1, list(branch))

    return walk(sample, 0, tree)


@dataclass(frozen=True)
class ScoredPlan:
    """A plan, its qualities (higher is better, in a fixed order) and its cost (in any unit, the mean over steps)."""

    plan: Plan
    qualities: tuple[float, ...]
    cost: float

    @property
    def depth(self) -> int:
        """Of the network that holds all that the plan uses: what decides on the model's size."""
        return max(self.plan)


@dataclass(frozen=True)
class Rivals:
    """The best multi-depth plans beside a single depth, which is among the candidates for each of them.

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
