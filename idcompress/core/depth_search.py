"""Depth search (Alg. 1): from the whole model on, keep cutting while the quality still holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class DepthProbe:
    """One evaluated depth, and whether every threshold held there."""

    depth: int
    passed: bool


class FullModelFailsError(ValueError):
    """The uncut model itself misses a threshold, so no cut can be chosen."""


def cut_search(
    passes: Callable[[Candidate], bool], candidates: Sequence[Candidate], *, whole_curve: bool = False
) -> tuple[Candidate, list[tuple[Candidate, bool]]]:
    """The last candidate before quality first falls below the thresholds.

    Args:
        passes: whether the model cut to a candidate meets every threshold; called once per candidate, in their order.
        candidates: the whole model first, then ever smaller ones.
        whole_curve: go on probing after the first failure, for the curve; the choice is unchanged.

    Returns:
        (candidate, probes); the first candidate, which is the whole model, if nothing can be removed.

    Raises:
        FullModelFailsError: the whole model fails.

    Source: Kim et al., ACCV 2024, Alg. 1.
    """
    probes: list[tuple[Candidate, bool]] = []
    chosen: Candidate | None = None
    for position, candidate in enumerate(candidates):
        passed = passes(candidate)
        probes.append((candidate, passed))
        if not probes[0][1]:
            raise FullModelFailsError("the whole model misses a threshold")
        if not passed and chosen is None:
            chosen = candidates[position - 1]
            if not whole_curve:
                break
    return (candidates[-1] if chosen is None else chosen), probes


def depth_search(
    passes: Callable[[int], bool], full_depth: int, *, min_depth: int = 1, whole_curve: bool = False
) -> tuple[int, list[DepthProbe]]:
    """`cut_search` over depths: the shallowest one reached before quality first falls below the thresholds.

    Args:
        passes: depth -> whether the model cut to it meets every threshold; called once per depth, deepest first.
        full_depth: the uncut model's depth, probed first.
        min_depth: do not go below this.

    Returns:
        (depth, probes): `depth == full_depth` says that no level can go.

    Raises:
        FullModelFailsError: the full model fails.
    """
    depths = range(full_depth, min(min_depth, full_depth) - 1, -1)
    try:
        depth, probes = cut_search(passes, depths, whole_curve=whole_curve)
    except FullModelFailsError:
        raise FullModelFailsError(f"the full model (depth {full_depth}) misses a threshold") from None
    return depth, [DepthProbe(*probe) for probe in probes]
