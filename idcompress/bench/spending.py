"""What a plan takes besides multiply-accumulates: milliseconds on this machine, and bytes of weights and caches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..adapters.deep_features import giving
from ..adapters.pipeline import with_components
from ..console import say
from ..core.guidance import num_branches
from ..core.plan import Plan, Step
from ..core.reuse import Parts, held_depths
from ..costs.latency import measure_latency, synchroniser
from ..errors import IdcError
from ..runs import ranks
from ..runs.trace import Trace
from .bench import Bench
from .costs import Work

REPEATS = 5  # timed calls of every entry of the table


class Milliseconds:
    """Time of a plan's networks for one image, from a table of what a step may compute.

    The table is measured once, and kept in the trace, so that an interrupted search goes on with the same numbers.

    Args:
        like: a plan with the guidance of all plans.
        depths: that steps may compute besides all levels.
        passes: whether steps may leave guidance passes out.
        refresh: whether steps may leave side networks out.
    """

    def __init__(
        self,
        bench: Bench,
        pipeline: Any,
        like: Plan,
        trace: Trace,
        *,
        depths: Sequence[int],
        passes: bool,
        refresh: bool,
    ) -> None:
        self.work = Work(bench, pipeline)
        self.table: dict[tuple[int | None, int, bool], float] = {}
        whole = num_branches(like.guidance)
        counts = (whole, 1) if passes and whole > 1 else (whole,)
        wait = synchroniser(bench.device)
        for depth in (None, *depths):
            parts, sample, timestep = one_step(bench, pipeline, like, depth, depths)
            for count in counts:
                for fresh in (True, False) if refresh and parts.side is not None else (True,):
                    key = {"part": "milliseconds", "depth": depth, "passes": count, "refresh": fresh}
                    row = trace.find(**key)
                    if row is None:
                        call = _Call(parts, sample, timestep, count, fresh)
                        timed = partial(measure_latency, call, warmup=1, repeats=REPEATS, synchronise=wait)
                        found = ranks.agreed(timed, "milliseconds of a step")
                        row = trace.append(key | {"milliseconds": round(found.median_ms, 4)})
                    self.table[depth, count, fresh] = row["milliseconds"]
        for (depth, count, fresh), took in self.table.items():
            what = (
                f"{'all levels' if depth is None else f'depth {depth}'}, passes {count}{'' if fresh else ', held side'}"
            )
            say(f"  a step of {what}: {took:.3g} ms")

    def of(self, plan: Plan) -> float:
        """Milliseconds of all steps."""
        branches = num_branches(plan.guidance)
        return math.fsum(self._step(step, branches) for step in self.work.computed(plan).steps)

    def _step(self, step: Step, branches: int) -> float:
        passes = step.num_passes(branches)
        fresh = step.refresh or (step.depth, passes, False) not in self.table
        return self.table[step.depth, passes, fresh]


class _Call:
    """One step's networks, to be timed."""

    def __init__(self, parts: Parts, sample: Tensor, timestep: Tensor, passes: int, refresh: bool) -> None:
        self.arguments, self.parts, self.refresh = (sample, timestep, passes), parts, refresh
        with torch.inference_mode():
            self.side = None if parts.side is None else parts.side(*self.arguments)

    @torch.inference_mode()
    def __call__(self) -> None:
        side = self.parts.side(*self.arguments) if self.parts.side is not None and self.refresh else self.side
        self.parts.outputs(*self.arguments, side, None)


class Bytes:
    """Bytes of the weights that are called at every step, and of what a plan's steps leave to later ones, per image."""

    def __init__(self, bench: Bench, pipeline: Any, like: Plan, depths: Sequence[int]) -> None:
        self.work = Work(bench, pipeline)
        self.weights = weights_of(bench, pipeline)
        parts, sample, timestep = one_step(bench, pipeline, like, None, depths)
        with torch.inference_mode():
            side = None if parts.side is None else parts.side(sample, timestep, parts.passes)
            _, hidden = parts.outputs(sample, timestep, parts.passes, side, None)
        self.hidden = {depth: state.nbytes for depth, state in hidden.items()}
        self.side = sum(part.nbytes for part in _tensors(side))

    def of(self, plan: Plan) -> float:
        """All bytes; a state is held once, and twice where a line is drawn through two."""
        really = self.work.computed(plan)
        states = (2 if plan.fill == "linear" else 1) * sum(self.hidden[depth] for depth in held_depths(really))
        return self.weights + states + (0 if all(step.refresh for step in really.steps) else self.side)


def weights_of(bench: Bench, pipeline: Any) -> int:
    """Bytes of the weights of the networks that are called at every step."""
    return sum(parameter.nbytes for module in bench.task.networks(pipeline) for parameter in module.parameters())


def depth_within(bench: Bench, pipeline: Any, depth: int, most: float) -> int:
    """The greatest depth, at most the given one, whose weights take no more bytes than that.

    Raises:
        IdcError: not even one level does; the message has the least possible.
    """
    sizes = dict[int, int]()
    for stored in range(depth, 0, -1):
        sizes[stored] = weights_of(bench, pipeline if stored == depth else bench.at_depth(pipeline)(stored))
        if sizes[stored] <= most:
            return stored
    raise IdcError(
        f"plan.bytes={most:g} is less than the weights of one level of this model in "
        f"{str(pipeline.unet.dtype).removeprefix('torch.')}, {sizes[1]:,} bytes at the least; raise it, or take "
        "dtype=float16"
    )


def one_step(
    bench: Bench, pipeline: Any, like: Plan, depth: int | None, depths: Iterable[int]
) -> tuple[Parts, Tensor, Tensor]:
    """The networks of a step over the first example, which give hidden states at some depths, and their inputs.

    Returns:
        the parts, a sample (1, 4, h, w), and a timestep.
    """
    which = pipeline if depth is None else bench.at_depth(pipeline)(depth)
    if depths:
        which = with_components(which, {"unet": giving(which.unet, depths)})
    parts = bench.task.parts(which, bench.conditioning((0,)), like.guidance)
    timestep = like.timesteps[0]
    start = bench.task.start(pipeline, bench.examples[:1], bench.model.process.level(timestep), bench.seed)
    return parts, start.to(bench.device), torch.tensor(timestep, device=bench.device)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif value is not None:
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)
