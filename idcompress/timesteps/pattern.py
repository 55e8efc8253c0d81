"""Pattern descent from the best of several lists, scored under the sampler that will run it."""

from functools import reduce

from ..core.dynamic_programme import DISCOUNTS, jump_costs, lists_by_discount
from ..core.pattern import Nodes, pattern_descent
from ..core.process import check_num_inference_steps
from ..core.timestep_search import trailing_timesteps, uniform_timesteps
from ..errors import IdcError
from ..types import Schedule, ScheduleRequest

SOURCE = "ours; coordinate moves as in Sabour et al., Align Your Steps, arXiv 2404.14507; starts of arXiv 2405.11326"
NEEDS = ("score", "better", "teacher")


def timesteps(request: ScheduleRequest, *, budget: int = 40, tolerance: float = 0.02) -> Schedule:
    """Start from the best of trailing, uniform and dynamic-programming lists, and move one timestep at a time.

    Args:
        budget: lists that are sampled in all, starts included, each on as many images as its comparisons take.
        tolerance: of the score, in the metric's unit: two rounds that gain less end the search.
    """
    n, process = request.num_inference_steps, request.process
    check_num_inference_steps(n, process.num_train_timesteps)
    score = request.score
    if score is None:
        raise IdcError("timesteps=pattern searches by sampling, which cannot be done here; use trailing")
    if budget < 1:
        raise IdcError(f"timesteps.budget must be at least 1, got {budget}")
    # 1. where to start
    starts: dict[Nodes, str] = {tuple(uniform_timesteps(n, process)): "uniform"}
    starts.setdefault(tuple(trailing_timesteps(n, process)), "trailing")
    teacher = None if request.teacher is None else request.teacher()
    if teacher is not None and n <= len(teacher.timesteps):
        costs = jump_costs(teacher.timesteps, teacher.samples, teacher.originals, teacher.final, process)
        for found, discount in lists_by_discount(teacher.timesteps, costs, n, DISCOUNTS).items():
            starts.setdefault(found, f"gits {discount:g}")
    candidates = list(starts)[-budget:]
    scores: dict[Nodes, float] = {}

    def value_of(nodes: Nodes) -> float:
        if nodes not in scores:
            scores[nodes] = score(list(nodes))
        return scores[nodes]

    def better(nodes: Nodes, other: Nodes) -> bool:
        if request.better is None:
            return value_of(nodes) > value_of(other)
        return request.better(list(nodes), list(other))

    start = reduce(lambda best, nodes: nodes if better(nodes, best) else best, candidates)
    value_of(start)
    # 2. the descent
    descent = pattern_descent(
        value_of,
        start,
        better=better,
        budget=budget - len(candidates),
        tolerance=tolerance,
        known=scores,
        last=process.max_timestep,
    )
    evaluations = len(candidates) + descent.evaluations
    return Schedule(list(descent.nodes), {"start": starts[start], "evaluations": evaluations, "ended": descent.ended})
