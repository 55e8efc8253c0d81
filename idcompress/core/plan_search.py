"""The search for the best plan under a budget: where it begins, how plans are changed, and when it ends.

Plans are compared by what the caller measures; nothing here knows a network. A step's depth is one of a few, deepest
None, and every change that leaves the budget is undone by shallower steps elsewhere, or not tried.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from .plan import Fill, Passes, Plan, Step

Move = Literal["timesteps", "depth", "fill", "sampler", "refresh", "passes"]
Pattern = Literal["full", "every_2nd", "every_3rd", "growing", "first", "front", "one_depth"]
STRIDES = (64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Menu:
    """What plans may be made of.

    Attributes:
        moves: what the local search may change; the rest stays as the seeds have it.
        patterns: which steps of a seed compute everything.
        depths: of the other steps, rising.
        samplers, fills, passes: in the order in which they are tried; seeds have the first ones.
        last: the largest timestep.
    """

    moves: tuple[Move, ...]
    patterns: tuple[Pattern, ...]
    depths: tuple[int, ...]
    samplers: tuple[str, ...]
    fills: tuple[Fill, ...]
    passes: tuple[Passes, ...] = ("all",)
    last: int = 999


def patterned(timesteps: Sequence[float | int], pattern: Pattern, depth: int | None) -> tuple[Step, ...]:
    """Steps over a list, of which a pattern says where everything is computed; the others have one depth."""
    number = len(timesteps)
    whole = {
        "full": range(number),
        "every_2nd": range(0, number, 2),  # DeepCache, N = 2
        "every_3rd": range(0, number, 3),  # DeepCache, N = 3
        "growing": [n * (n + 1) // 2 for n in range(number)],  # one shallow step between whole ones, then two, ...
        "first": range(1),
        "front": range((number + 1) // 2),
        "one_depth": range(0),  # the paper's cut
    }[pattern]
    return tuple(Step(t, None if place in whole else depth) for place, t in enumerate(timesteps))


def guidance_intervals(plan: Plan, menu: Menu) -> Iterator[Plan]:
    """The plan with guidance in a part of its steps alone: the first half, and all but the first and last quarter.

    Nothing where the menu lets no step go without guidance.

    Source: Kynkaanniemi et al., Applying Guidance in a Limited Interval, arXiv 2404.07724.
    """
    if "passes" not in menu.moves or "text" not in menu.passes:
        return
    number = len(plan)
    for guided in (range((number + 1) // 2), range(number // 4, number - number // 4)):
        steps = (replace(step, passes="all" if i in guided else "text") for i, step in enumerate(plan.steps))
        yield replace(plan, steps=tuple(steps))


def neighbours(plan: Plan, menu: Menu, fits: Callable[[Plan], bool], stride: int) -> Iterator[Plan]:
    """Plans that differ in one thing, those that share the longest beginnings first.

    Args:
        fits: whether a plan is within the budget.
        stride: by which timesteps are shifted.
    """
    tried = {plan}
    for found in _changed(plan, menu, fits, stride):
        if found not in tried and _falls(found.timesteps, menu.last) and fits(found):
            tried.add(found)
            yield found


def _changed(plan: Plan, menu: Menu, fits: Callable[[Plan], bool], stride: int) -> Iterator[Plan]:
    steps, places = plan.steps, range(len(plan))[::-1]
    ladder = (*menu.depths, None)  # ever deeper
    if "timesteps" in menu.moves:
        for place in places:
            for move in (-stride, stride):
                moved = (*plan.timesteps[:place], steps[place].timestep + move, *plan.timesteps[place + 1 :])
                if _falls(moved, menu.last):  # no plan has another order
                    yield _with(plan, place, timestep=moved[place])
    if "depth" in menu.moves:
        # swap two, deepen one, deepen one at another's cost
        for first in places:
            for second in range(first + 1, len(plan)):
                if steps[first].depth != steps[second].depth:
                    swapped = _with(plan, first, depth=steps[second].depth)
                    yield _with(swapped, second, depth=steps[first].depth)
        for place in places:
            for deeper in _beyond(ladder, steps[place].depth):
                deepened = _with(plan, place, depth=deeper)
                yield deepened
                if not fits(deepened):
                    for other in places:
                        if other != place:
                            yield from (_with(deepened, other, depth=d) for d in _below(ladder, steps[other].depth))
            yield from (_with(plan, place, depth=d) for d in _below(ladder, steps[place].depth))
    if "timesteps" in menu.moves:
        # trade a node for depth, and depth for a node
        for place in places:
            if len(plan) > 1:
                fewer = replace(plan, steps=(*steps[:place], *steps[place + 1 :]))
                yield fewer
                if "depth" in menu.moves:
                    for other in range(len(fewer))[::-1]:
                        yield from (_with(fewer, other, depth=d) for d in _beyond(ladder, fewer.steps[other].depth))
        for place in places:
            after = steps[place + 1].timestep if place + 1 < len(plan) else 0
            middle = (steps[place].timestep + after) // 2
            for depth in reversed(ladder) if "depth" in menu.moves else (steps[place].depth,):
                more = replace(
                    plan,
                    steps=(
                        *steps[: place + 1],
                        replace(steps[place], timestep=middle, depth=depth),
                        *steps[place + 1 :],
                    ),
                )
                yield more
                if "depth" in menu.moves and not fits(more):
                    for other in range(len(more))[::-1]:
                        yield from (_with(more, other, depth=d) for d in _below(ladder, more.steps[other].depth))
    if "refresh" in menu.moves:
        yield from (_with(plan, place, refresh=not steps[place].refresh) for place in places)
    if "passes" in menu.moves:
        yield from (_with(plan, place, passes=passes) for place in places for passes in menu.passes)
    if "fill" in menu.moves and plan.is_shallow:
        yield from (replace(plan, fill=fill) for fill in menu.fills)
    if "sampler" in menu.moves:
        yield from (replace(plan, sampler=sampler) for sampler in menu.samplers)


def local_search(
    start: Plan,
    around: Callable[[Plan, int], Iterator[Plan]],
    better: Callable[[Plan, Plan], bool],
    gain: Callable[[Plan, Plan], tuple[float, float]],
    *,
    strides: Sequence[int] = STRIDES,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Plan:
    """Change a plan as long as it gets better; every change that is better is taken at once.

    A round tries all neighbours of the plan that it began with or came to. One that gained less than two standard
    errors halves the stride; two such rounds in a row, without any gain at the last stride, or the ceiling, end it.

    Args:
        around: (plan, stride) -> its neighbours.
        better: (plan, other) -> whether the first one is better.
        gain: (plan, other) -> the mean gain over the other and its standard error.
        may_go_on: False once no further plan may be tried.
    """
    best, idle, tried = start, 0, {start}
    stride = 0
    while stride < len(strides):
        before, improved = best, True
        while improved:
            improved = False
            for plan in around(best, strides[stride]):
                if not may_go_on():
                    return best
                if plan not in tried:
                    tried.add(plan)
                    if better(plan, best):
                        best, improved = plan, True
                        break
        won, error = (0.0, 0.0) if best == before else gain(best, before)
        idle = idle + 1 if won < 2 * error or best == before else 0
        if idle >= 2 and best != before:
            return best
        stride += 1
    return best


def _with(plan: Plan, place: int, **changes: object) -> Plan:
    changed = replace(plan.steps[place], **changes)  # type: ignore[arg-type]
    return replace(plan, steps=(*plan.steps[:place], changed, *plan.steps[place + 1 :]), coefficients=None)


def _beyond(ladder: Sequence[int | None], depth: int | None) -> Sequence[int | None]:
    """Greater depths, the next one first."""
    return () if depth is None else [one for one in ladder if one is None or one > depth]


def _below(ladder: Sequence[int | None], depth: int | None) -> Sequence[int | None]:
    """Smaller depths, the next one first."""
    return [one for one in reversed(ladder) if one is not None and (depth is None or one < depth)]


def _falls(timesteps: Sequence[float | int], last: int) -> bool:
    return timesteps[0] <= last and timesteps[-1] >= 0 and all(a > b for a, b in pairwise(timesteps))
