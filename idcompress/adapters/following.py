"""Stock pipelines that follow a plan whose steps leave something out: their networks stand in for one call each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..core.guidance import num_branches
from ..core.plan import Plan, Step
from ..core.reuse import Networks, computed, stand_in
from ..errors import IdcError
from .deep_features import call_unet, giving
from .layers import check_layers, passing_by
from .pipeline import fixed_scheduler, with_components
from .unet import depth as depth_of


def following(pipeline: Any, plan: Plan, at_depth: Callable[[int], Any], side: str | None) -> Any:
    """A pipeline like this one that follows a plan, and is called as ever.

    What a step leaves to later ones belongs to one call of the pipeline, so that calls and threads do not mix.
    `pipeline.computed` has the plan's steps with what is really computed at each. After `pipeline.disable()` calls are
    those of the pipeline as it was, with its own scheduler, until `pipeline.enable()`.

    Args:
        at_depth: gives the pipeline that computes so many levels.
        side: the component besides the U-Net that is called at every step, if there is one.

    Raises:
        IdcError: a step leaves guidance passes out, which a stock pipeline cannot bring about, or repeats a timestep,
            which it cannot tell from another tile of the same step.
    """
    if len({*plan.timesteps}) < len(plan):
        raise IdcError(
            "this recipe's plan repeats a timestep, and its steps differ in what they compute: a stock pipeline cannot "
            "tell such steps apart; sample it by idc translate and the other commands"
        )
    if any(step.passes != "all" for step in plan.steps):
        raise IdcError(
            "a stock pipeline computes all guidance passes of a step, and this recipe's plan leaves some out; sample "
            "it by idc translate and the other commands"
        )
    really = computed(plan, Networks(depth_of(pipeline.unet), num_branches(plan.guidance), side is not None))
    kept = {step.depth for step in really.steps if step.depth is not None} if plan.fill != "zero" else set()
    stages: dict[int | None, Any] = {None: pipeline}
    stages |= {step.depth: at_depth(step.depth) for step in really.steps if step.depth is not None}
    for step in really.steps:
        check_layers(pipeline.unet, step.skip)
    computed_parts = {(step.depth, step.skip) for step in really.steps}
    unets = {(depth, skip): giving(passing_by(stages[depth], skip).unet, kept) for depth, skip in computed_parts}
    sides = {depth: None if side is None else getattr(stage, side) for depth, stage in stages.items()}
    made = with_components(pipeline, {"scheduler": fixed_scheduler(pipeline, plan.all_whole)})
    made.__class__ = type(type(pipeline).__name__, (_Following, type(pipeline)), {"__module__": __name__})
    made.computed, made._unplanned = really.steps, pipeline

    def for_a_call() -> Any:
        run = _Run(really, unets, sides)
        replaced = {"unet": _StandIn(pipeline.unet, run.unet)}
        if side is not None:
            replaced[side] = _StandIn(getattr(pipeline, side), run.side)
        copy = with_components(made, replaced)
        copy.__class__ = type(pipeline)
        return copy

    made._for_a_call = for_a_call
    return made


class _Following:
    _for_a_call: Callable[[], Any]
    _unplanned: Any
    _follows = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self._for_a_call() if self._follows else self._unplanned)(*args, **kwargs)

    def enable(self) -> None:
        """Follow the plan."""
        self._follows = True

    def disable(self) -> None:
        """Compute everything at every step, over as many steps as a call asks for."""
        self._follows = False

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        raise IdcError(
            "a pipeline folder cannot hold this plan, whose steps differ in what they compute; keep the recipe"
        )


class _Run:
    """One call of a pipeline. The networks' calls of a step, one for each tile, have the same order at every step."""

    def __init__(self, plan: Plan, unets: Mapping[Any, Any], sides: Mapping[int | None, Any]) -> None:
        self.plan, self.unets, self.sides = plan, unets, sides
        self.hidden: dict[tuple[int, int], tuple[tuple[float | int, Any], ...]] = {}
        self.held: dict[int, Any] = {}
        self.counts = {"unet": _Count(), "side": _Count()}

    def unet(self, sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        step, tile = self._step("unet", timestep)
        deep = None
        if step.depth is not None and self.plan.fill != "zero":
            deep = stand_in(step.timestep, self.hidden[tile, step.depth])
        output, found = call_unet(
            self.unets[step.depth, step.skip], sample, timestep, *args, deep_features=deep, **kwargs
        )
        for depth, state in found.items():
            old = (
                self.hidden.get((tile, depth), ())[-1:]
                if self.plan.fill == "linear" and step != self.plan.steps[0]
                else ()
            )
            self.hidden[tile, depth] = (*old, (step.timestep, state))
        return output

    def side(self, sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        step, tile = self._step("side", timestep)
        if step.refresh:
            self.held[tile] = self.sides[step.depth](sample, timestep, *args, **kwargs)
        return self.held[tile]

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
