"""Pattern descent on lists of whole timesteps: move one of them, keep what is better, and halve the stride."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Nodes = tuple[float | int, ...]


@dataclass(frozen=True)
class Descent:
    """Where a descent ended: the list, its score, how many lists were scored, and why it went no further."""

    nodes: Nodes
    value: float
    evaluations: int
    ended: str


def pattern_descent(
    score: Callable[[Nodes], float],
    start: Sequence[float | int],
    *,
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
        strides: falling.
        budget: lists that may be scored, the start included.
        tolerance: a gain that is none; with 0 every stride is tried, and two rounds without any gain end nothing.
        known: scores from before; new ones are added.
        last: the largest timestep, T - 1.

    Returns:
        Never a list that scores below the start.
    """
    values = {} if known is None else known
    used = 0

    def value_of(nodes: Nodes) -> float | None:
        nonlocal used
        if nodes not in values:
            if used >= budget:
                return None
            used += 1
            values[nodes] = score(nodes)
        return values[nodes]

    best = tuple(start)
    value = value_of(best)
    if value is None:
        raise ValueError(f"a descent must be able to score its start, got budget {budget}")
    idle = 0
    for stride in strides:
        while True:
            before = value
            for place in reversed(range(len(best))):
                for move in (-stride, stride):
                    moved = (*best[:place], best[place] + move, *best[place + 1 :])
                    if not _is_list(moved, last):
                        continue
                    found = value_of(moved)
                    if found is None:
                        return Descent(best, value, used, "budget")
                    if found > value:
                        best, value = moved, found
                        break
            # equal first: two infinite scores have no difference
            idle = idle + 1 if value == before or value - before <= tolerance else 0
            if idle:
                break
        if tolerance > 0 and idle >= 2:
            return Descent(best, value, used, "no gain")
    return Descent(best, value, used, "converged")


def _is_list(nodes: Nodes, last: int) -> bool:
    """Falling strictly, within range: a repeat would be a step for nothing."""
    return nodes[0] <= last and nodes[-1] >= 0 and all(a > b for a, b in pairwise(nodes))
