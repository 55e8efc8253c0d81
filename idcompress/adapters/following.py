"""Stock pipelines that follow a plan whose steps leave something out: their networks stand in for one call each.

`FollowsPlan` uses nothing that a folder for plain diffusers could not bring along, see export/component.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.guidance import num_branches
from ..core.plan import Plan, Step
from ..core.reuse import Networks, computed, held_depths, joined, part, stand_in
from ..errors import IdcError
from .deep_features import call_unet, giving
from .layers import check_layers, without_layers
from .pipeline import with_components
from .side_networks import cut_networks, stored_levels


class FollowsPlan:
    """What stands before a pipeline's class to let its calls follow a plan.

    What a step leaves to later ones belongs to one call of the pipeline, so that calls and threads do not mix. The
    pipeline's scheduler has the plan's timesteps, sampler and numbers.

    Attributes:
        plan: its timesteps differ from one another.
        side: the component besides the U-Net that is called at every step, if there is one.
        order: of the pipeline's guidance passes in a batch, by their numbers in a task's parts; 0 has the text.
        unplanned: the pipeline that `disable` calls; None for this one without its scheduler's list.
    """

    plan: Plan
    side: str | None
    order: tuple[int, ...]
    unplanned: Any = None
    _follows = True
    _cut: tuple[Any, Any, dict[int | None, Any]] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self._for_a_call() if self._follows else self._without_plan())(*args, **kwargs)

    @property
    def computed(self) -> tuple[Step, ...]:
        """The plan's steps with what is really computed at each."""
        return self._really.steps

    def enable(self) -> None:
        """Follow the plan."""
        self._follows = True

    def disable(self) -> None:
        """Compute everything at every step, over as many steps as a call asks for."""
        self._follows = False

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        raise IdcError(
            "diffusers saves networks and no plan; write a folder that keeps it by idc export, or copy the one that "
            "this pipeline came from"
        )

    @property
    def _really(self) -> Plan:
        pipeline: Any = self
        levels, passes = stored_levels(pipeline.unet), num_branches(self.plan.guidance)
        return computed(self.plan, Networks(levels, passes, self.side is not None))

    def _for_a_call(self) -> Any:
        pipeline: Any = self
        plan = self._really
        kept = held_depths(plan)
        stages = self._stages(plan)
        parts = {(step.depth, step.skip) for step in plan.steps}
        unets = {(depth, skip): giving(without_layers(stages[depth]["unet"], skip), kept) for depth, skip in parts}
        sides = {depth: stage.get(self.side) for depth, stage in stages.items()}
        copy = with_components(self, {"scheduler": pipeline.scheduler})
        copy.__class__ = type(self).__bases__[1]

        def passes() -> int:
            """In the batches of this call."""
            return len(self.order) if getattr(copy, "do_classifier_free_guidance", False) else 1

        run = _Run(plan, unets, sides, self.order.index(0), passes)
        copy.unet = _StandIn(pipeline.unet, run.unet)
        if self.side is not None:
            setattr(copy, self.side, _StandIn(getattr(self, self.side), run.side))
        return copy

    def _stages(self, plan: Plan) -> dict[int | None, Any]:
        """The networks by depth, None for all that is stored; made anew where a network was replaced."""
        pipeline: Any = self
        side = None if self.side is None else getattr(self, self.side)
        if self._cut is None or self._cut[0] is not pipeline.unet or self._cut[1] is not side:
            stored = {"unet": pipeline.unet} | ({} if self.side is None else {self.side: side})
            depths = {step.depth for step in plan.steps if step.depth is not None}
            stages = {None: stored} | {depth: stored | cut_networks(stored, depth) for depth in depths}
            self._cut = (pipeline.unet, side, stages)
        return self._cut[2]

    def _without_plan(self) -> Any:
        if self.unplanned is not None:
            return self.unplanned
        pipeline: Any = self
        copy = with_components(self, {"scheduler": pipeline.scheduler.without_list()})
        copy.__class__ = type(self).__bases__[1]
        return copy


def following(pipeline: Any, plan: Plan, order: tuple[int, ...], side: str | None, scheduler: Any) -> Any:
    """A pipeline like this one that follows a plan, and is called as ever; see `FollowsPlan`.

    Args:
        scheduler: with the plan's timesteps, sampler and numbers.

    Raises:
        IdcError: a timestep is repeated, see `check_followed`, or a step passes a layer by that is not there.
    """
    check_followed(plan)
    check_layers(pipeline.unet, plan.skipped)
    made = with_components(pipeline, {"scheduler": scheduler})
    namespace = {"plan": plan, "side": side, "order": order, "unplanned": pipeline, "__module__": __name__}
    made.__class__ = type(type(pipeline).__name__, (FollowsPlan, type(pipeline)), namespace)
    return made


def check_followed(plan: Plan) -> None:
    """Raise IdcError where a plan repeats a timestep: a step's second call would look like another tile's first."""
    if len({*plan.timesteps}) < len(plan):
        raise IdcError(
            "this recipe's plan repeats a timestep, and its steps differ in what they compute: a stock pipeline cannot "
            "tell such steps apart; sample it by idc translate and the other commands"
        )


class _Run:
    """One call of a pipeline. The networks' calls of a step, one for each tile, have the same order at every step.

    Args:
        plan: with what is really computed.
        unets, sides: by depth, U-Nets also by the layers that they pass by.
        text: place of the pass with the text in a batch of all passes.
        passes: how many the pipeline's batches hold.
    """

    def __init__(
        self,
        plan: Plan,
        unets: Mapping[tuple[int | None, tuple[str, ...]], Any],
        sides: Mapping[int | None, Any],
        text: int,
        passes: Callable[[], int],
    ) -> None:
        self.plan, self.unets, self.sides, self.text, self.passes = plan, unets, sides, text, passes
        self.hidden: dict[tuple[int, int, int], tuple[tuple[float | int, Tensor], ...]] = {}
        self.held: dict[tuple[int, int], Any] = {}
        self.differences: dict[int, Tensor] = {}
        self.counts = {"unet": _Count(), "side": _Count()}

    def unet(self, sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        step, tile = self._step("unet", timestep)
        passes = self.passes()
        places = self._places(step, passes)
        if len(places) < passes:
            sample, args, kwargs = (part(value, self.text, passes) for value in (sample, args, kwargs))
        deep = None
        if step.depth is not None and self.plan.fill != "zero":
            states = [self.hidden[tile, place, step.depth] for place in places]
            deep = torch.cat([stand_in(step.timestep, found) for found in states])
        unet = self.unets[step.depth, step.skip]
        output, found = call_unet(unet, sample, timestep, *args, deep_features=deep, **kwargs)
        goes_on = self.plan.fill == "linear" and step != self.plan.steps[0]  # not from another picture
        for depth, state in found.items():
            for place, one in zip(places, state.chunk(len(places)), strict=True):
                before = self.hidden.get((tile, place, depth), ())[-1:] if goes_on else ()
                self.hidden[tile, place, depth] = (*before, (step.timestep, one))
        if passes == 1:
            return output
        guided = self._guided(output[0], step, tile, passes)
        return output if guided is output[0] else (guided,)

    def _guided(self, values: Tensor, step: Step, tile: int, passes: int) -> Tensor:
        """What all passes say, of which the pipeline makes what the step says, whatever the scales of guidance."""
        if step.passes == "all":
            self.differences[tile] = values - values.chunk(passes)[self.text].repeat(passes, 1, 1, 1)
            return values
        alike = values.repeat(passes, 1, 1, 1)
        return alike + self.differences[tile] if step.passes == "held" else alike

    def side(self, sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        step, tile = self._step("side", timestep)
        passes = 1 if kwargs.get("guess_mode") else self.passes()  # which calls it for the text alone
        places = self._places(step, passes)
        if step.refresh:
            if len(places) < passes:
                sample, args, kwargs = (part(value, self.text, passes) for value in (sample, args, kwargs))
            output = self.sides[step.depth](sample, timestep, *args, **kwargs)
            for number, place in enumerate(places):
                self.held[tile, place] = part(output, number, len(places))
        shown = places if len(places) == passes else [self.text] * passes
        return joined([self.held[tile, place] for place in shown])

    def _places(self, step: Step, passes: int) -> list[int]:
        """Which of a batch's passes are computed."""
        return list(range(passes)) if passes == 1 or step.passes == "all" else [self.text]

    def _step(self, name: str, timestep: Any) -> tuple[Step, int]:
        """The plan's step at a timestep, and how many calls of this network it has had before."""
        now, count = float(timestep), self.counts[name]
        count.tile = count.tile + 1 if count.timestep == now else 0
        count.timestep = now
        return next(step for step in self.plan.steps if step.timestep == now), count.tile


class _Count:
    timestep: float | None = None
    tile = 0


class _StandIn:
    """A network whose calls go to a run; it is asked for everything else."""

    def __init__(self, network: Any, call: Callable[..., Any]) -> None:
        self._network, self._call = network, call

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pipelines look at the class
        return type(self._network)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)
