"""What a step may take from the steps before it: hidden states, guidance differences, side networks' outputs.

A step that computes fewer levels than are stored reads, where its decoder begins, the hidden state that a deeper step
had there, or what that becomes if it goes on as it did. What no earlier step has left is computed, whatever the step
says, so that the first step computes everything; `computed` tells which steps a plan comes to, and costs count those.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .plan import Fill, Plan, Step
from .sample import Denoise


@dataclass(frozen=True)
class Parts:
    """A task's networks with their conditioning, in parts that a step can leave out; passes are in a fixed order.

    Attributes:
        passes: guidance passes, the one that samples without guidance first.
        outputs: (sample (B, ...), timestep (), passes, side, deep features (passes x B, C, h, w) or None) -> the output
            of each pass, (B, ...) float32, and the hidden states (passes x B, C, h, w) that entered the decoder, by
            depth.
        combine: outputs of all passes -> the guided output.
        side: (sample, timestep, passes) -> what the side networks say, as a tuple of tensors (passes x B, ...), or
            anything where there is one pass; None where there are no side networks.
    """

    passes: int
    outputs: Callable[[Tensor, Tensor, int, Any, Tensor | None], tuple[tuple[Tensor, ...], Mapping[int, Tensor]]]
    combine: Callable[[tuple[Tensor, ...]], Tensor]
    side: Callable[[Tensor, Tensor, int], Any] | None = None


class Networks(NamedTuple):
    """What of a model decides which steps can leave something out.

    Attributes:
        depth: levels that are stored.
        passes: guidance passes.
        has_side: whether there are side networks.
    """

    depth: int
    passes: int
    has_side: bool


class Known(NamedTuple):
    """What the steps so far have left: per pass the greatest depth of any, and that of the last side networks'."""

    depths: tuple[int, ...] = ()
    sides: tuple[int, ...] = ()
    difference: bool = False


def computed_step(step: Step, known: Known, networks: Networks, fill: Fill) -> tuple[Step, Known]:
    """The step as it is computed, with everything that it cannot take from before, and what is known after it."""
    depth = networks.depth if step.depth is None else min(step.depth, networks.depth)
    whole = networks.passes == 1 or step.passes == "all" or (step.passes == "held" and not known.difference)
    passes = networks.passes if whole else 1
    depths = (*known.depths, *[0] * (networks.passes - len(known.depths)))
    sides = (*known.sides, *[0] * (networks.passes - len(known.sides)))
    if fill != "zero" and min(depths[:passes]) <= depth:
        depth = networks.depth
    refresh = step.refresh or not networks.has_side or min(sides[:passes]) < depth
    after = Known(
        (*(max(before, depth) for before in depths[:passes]), *depths[passes:]),
        (*[depth] * passes, *sides[passes:]) if refresh else sides,
        known.difference or whole,
    )
    stored = None if depth == networks.depth else depth
    really = replace(step, depth=stored, passes="all" if whole else step.passes, refresh=refresh)
    return really, after


def computed(plan: Plan, networks: Networks) -> Plan:
    """The plan whose steps say what is really computed; it samples the same."""
    known, steps = Known(), []
    for step in plan.steps:
        really, known = computed_step(step, known, networks, plan.fill)
        steps.append(really)
    return replace(plan, steps=tuple(steps))


@dataclass(frozen=True)
class Cache:
    """What a run has left so far; a value, which the next step replaces and does not change.

    Attributes:
        known: see `Known`.
        hidden: (pass, depth) -> the last two hidden states there, or the last one, each with its timestep.
        difference: of guidance, the guided output less the first pass's.
        sides: by pass.
    """

    known: Known = field(default_factory=Known)
    hidden: Mapping[tuple[int, int], tuple[tuple[float | int, Tensor], ...]] = field(default_factory=dict)
    difference: Tensor | None = None
    sides: Mapping[int, Any] = field(default_factory=dict)


def reusing(parts_at: Callable[[Step], Parts], networks: Networks, fill: Fill) -> Denoise:
    """A denoiser of steps that leave something out.

    Args:
        parts_at: a step -> the parts of the networks that compute its levels and layers.
        networks: of the parts at full depth.
        fill: the plan's.
    """

    def denoise(sample: Tensor, step: Step, cache: Cache | None) -> tuple[Tensor, Cache]:
        cache = cache or Cache()
        really, known = computed_step(step, cache.known, networks, fill)
        parts, timestep = parts_at(really), torch.tensor(step.timestep, device=sample.device)
        passes = really.num_passes(networks.passes)
        sides = dict(cache.sides)
        if parts.side is not None and really.refresh:
            made = parts.side(sample, timestep, passes)
            sides |= {number: part(made, number, passes) for number in range(passes)}
        side = None if parts.side is None else joined([sides[number] for number in range(passes)])
        deep = None
        if really.depth is not None and fill != "zero":
            states = [cache.hidden[number, really.depth] for number in range(passes)]
            deep = torch.cat([stand_in(step.timestep, found) for found in states])
        outputs, found = parts.outputs(sample, timestep, passes, side, deep)

        hidden = dict(cache.hidden)
        for depth, state in found.items():
            for number, own in enumerate(state.chunk(passes)):
                before = hidden.get((number, depth), ())[-1:] if fill == "linear" else ()
                hidden[number, depth] = (*before, (step.timestep, own))
        difference = cache.difference
        if really.passes == "all":
            output = parts.combine(outputs)
            difference = output - outputs[0] if passes > 1 else None
        else:
            output = outputs[0] if really.passes == "text" or difference is None else outputs[0] + difference
        return output, Cache(known, hidden, difference, sides)

    return denoise


def whole(parts: Parts) -> Denoise:
    """A denoiser that computes everything at every step and keeps nothing."""

    def denoise(sample: Tensor, step: Step, cache: Any) -> tuple[Tensor, Any]:
        timestep = torch.tensor(step.timestep, device=sample.device)
        side = None if parts.side is None else parts.side(sample, timestep, parts.passes)
        return parts.combine(parts.outputs(sample, timestep, parts.passes, side, None)[0]), cache

    return denoise


def leaves_out(plan: Plan) -> bool:
    """Whether a step takes something from the steps before it; zeros at the cut come from nowhere."""
    return bool(held_depths(plan)) or any(step.passes != "all" or not step.refresh for step in plan.steps)


def held_depths(plan: Plan) -> set[int]:
    """Depths at which steps take the hidden state of earlier ones; none where zeros stand for it."""
    return set() if plan.fill == "zero" else {step.depth for step in plan.steps if step.depth is not None}


def stand_in(timestep: float | int, states: tuple[tuple[float | int, Tensor], ...]) -> Tensor:
    """The last state, or where two of them lead on a straight line over the timestep."""
    (last_timestep, last), (first_timestep, first) = states[-1], states[0]
    if first_timestep == last_timestep:
        return last
    return last + (last - first) * ((timestep - last_timestep) / (last_timestep - first_timestep))


def part(value: Any, place: int, parts: int) -> Any:
    """One of several equal parts of a batch, of every tensor in a value."""
    if parts == 1:
        return value
    if isinstance(value, Tensor):
        return value.chunk(parts)[place] if value.ndim else value
    if isinstance(value, (list, tuple)):
        return type(value)(part(one, place, parts) for one in value)
    if isinstance(value, dict):
        return {name: part(one, place, parts) for name, one in value.items()}
    return value


def joined(values: Sequence[Any]) -> Any:
    """Values whose tensors are parts of a batch, as one."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(values)) if first.ndim else first
    if isinstance(first, (list, tuple)):
        return type(first)(joined(ones) for ones in zip(*values, strict=True))
    return first
