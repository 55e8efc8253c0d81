"""Pattern descent on lists of whole timesteps: move one of them, keep what is better, and halve the stride."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Nodes = tuple[float | int, ...]


@dataclass(frozen=True)
class Descent:
    """Where a descent ended: the list, its score, how many lists were tried, and why it went no further."""

    nodes: Nodes
    value: float
    evaluations: int
    ended: str


def pattern_descent(
    score: Callable[[Nodes], float],
    start: Sequence[float | int],
    *,
    better: Callable[[Nodes, Nodes], bool] | None = None,
    strides: Sequence[int] = (64, 32, 16, 8, 4, 2, 1),
    budget: int = 40,
    tolerance: float | int = 0.0,
    known: dict[Nodes, float] | None = None,
    last: int = 999,
) -> Descent:
    """Climb from one list by moves of single timesteps, latest ones first, whose lists share the longest beginnings.

    A round tries every timestep both ways by one stride, and takes each move that is better at once. A round that
    gained no more than the tolerance goes on to the next stride; two such rounds in a row, or the last stride, end it.

    Args:
        score: list -> value, higher is better; called at most once per list.
        start: never increasing, within [0, last].
        better: (list, other) -> whether the first scores higher, which may be known without both scores, and may err;
            then only what a round ends with is scored. None compares scores.
        strides: falling.
        budget: lists that may be tried, the start included.
        tolerance: a gain that is none; with 0 every stride is tried, and two rounds without any gain end nothing.
        known: scores from before; new ones are added.
        last: the largest timestep, T - 1.

    Returns:
        Never a list that scores below the start.
    """
    values = {} if known is None else known
    before_us, tried = len(values), set(values)

    def value_of(nodes: Nodes) -> float:
        if nodes not in values:
            values[nodes] = score(nodes)
        return values[nodes]

    def may_try(nodes: Nodes) -> bool:
        if nodes not in tried and len(tried) - before_us >= budget:
            return False
        tried.add(nodes)
        return True

    def ended(nodes: Nodes, why: str) -> Descent:
        return Descent(nodes, value_of(nodes), len(tried) - before_us, why)

    wins = better or (lambda nodes, other: value_of(nodes) > value_of(other))
    best = tuple(start)
    if not may_try(best):
        raise ValueError(f"a descent must be able to score its start, got budget {budget}")
    value_of(best)
    idle = 0
    for stride in strides:
        while True:
            before = best
            for place in reversed(range(len(best))):
                for move in (-stride, stride):
                    moved = (*best[:place], best[place] + move, *best[place + 1 :])
                    if not _is_list(moved, last):
                        continue
                    if not may_try(moved):
                        return ended(max(before, best, key=value_of), "budget")
                    if wins(moved, best):
                        best = moved
                        break
            best = max(before, best, key=value_of)  # a comparison may have erred
            # equal first: two infinite scores have no difference
            gained = 0.0 if value_of(best) == value_of(before) else value_of(best) - value_of(before)
            idle = idle + 1 if gained <= tolerance else 0
            if idle:
                break
        if tolerance > 0 and idle >= 2:
            return ended(best, "no gain")
    return ended(best, "converged")


def _is_list(nodes: Nodes, last: int) -> bool:
    """Falling strictly, within range: a repeat would be a step for nothing."""
    return nodes[0] <= last and nodes[-1] >= 0 and all(a > b for a, b in pairwise(nodes))
