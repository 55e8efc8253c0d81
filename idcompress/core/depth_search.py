"""Depth search (Alg. 1): from the deepest level up, keep cutting while the quality still holds."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class DepthProbe:
    """One evaluated depth, whether every threshold held there, and whether the choice of the search now rests on it."""

    depth: int
    passed: bool


class FullModelFailsError(ValueError):
    """The uncut model itself misses a threshold, so no depth can be chosen."""


def depth_search(
    passes: Callable[[int], bool], full_depth: int, *, min_depth: int = 1, whole_curve: bool = False
) -> tuple[int, list[DepthProbe]]:
    """The shallowest depth reached before quality first falls below the thresholds.

    Args:
        passes: depth -> whether the model cut to it meets every threshold; called once per depth, deepest first.
        full_depth: the uncut model's depth, probed first.
        min_depth: do not go below this.
        whole_curve: go on probing after the first failure, for the curve; the choice is unchanged.

    Returns:
        (depth, probes): `depth == full_depth` says that no level can go.

    Raises:
        FullModelFailsError: the full model fails.

    Source: Kim et al., ACCV 2024, Alg. 1.
    """
    min_depth = min(min_depth, full_depth)
    probes: list[DepthProbe] = []
    chosen: int | None = None
    for depth in range(full_depth, min_depth - 1, -1):
        probes.append(DepthProbe(depth, passes(depth)))
        if not probes[0].passed:
            raise FullModelFailsError(f"the full model (depth {full_depth}) misses a threshold")
        if not probes[-1].passed and chosen is None:
            chosen = depth + 1
            if not whole_curve:
                break
    return (min_depth if chosen is None else chosen), probes
