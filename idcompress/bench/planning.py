"""The best plan of a model under a budget of multiply-accumulates: plans fitted on some images, scored on others."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from ..console import say
from ..core.dynamic_programme import DISCOUNTS, jump_costs, lists_by_discount
from ..core.fit import FitSettings
from ..core.plan import Fill, Plan
from ..core.plan_search import Menu, local_search, neighbours, patterned
from ..core.sample import Beginnings
from ..core.timestep_search import gamma_timesteps, trailing_timesteps, uniform_timesteps
from ..errors import IdcError
from ..metrics._metric import MetricValue, in_words, together
from ..runs.trace import Trace
from ..types import Teacher
from .bench import Bench
from .costs import Work
from .early_stop import EarlyStop, Positions
from .fitting import Lists
from .translate import wants_coefficients

GAMMAS = (0.7, 0.85, 1.2, 1.5)  # of seeds; 1 is the uniform list
STATES = 16  # kept of each image's runs, so that plans go on from a common beginning
SEEDS = 3  # that go on to the next choice


class Ceiling:
    """Step-images that a search may take; a step that plans share counts for each of them, so that an interrupted run
    counts as one that was not.
    """

    def __init__(self, most: int) -> None:
        self.most, self.spent = most, 0

    @property
    def is_reached(self) -> bool:
        return self.spent >= self.most


@dataclass
class Fits:
    """Plans with the numbers of their samplers, fitted once each on images of their own."""

    bench: Bench
    pipeline: Any
    settings: FitSettings
    run: Callable[[], Teacher]
    depths: Sequence[int]
    _lists: dict[tuple[str, Fill], Lists] = field(default_factory=dict)
    _ready: dict[Plan, Plan] = field(default_factory=dict)

    def ready(self, plan: Plan) -> Plan:
        """The plan as it is sampled."""
        if plan not in self._ready:
            key = plan.sampler, plan.fill
            if key not in self._lists:
                few = defaultdict[tuple[int, ...], Beginnings](partial(Beginnings, STATES))
                self._lists[key] = Lists(self.bench, self.pipeline, self.settings, self.run, self.depths, few)
            self._ready[plan] = self._lists[key].finished(plan)
        return self._ready[plan]


@dataclass
class Scores:
    """Plans by the mean of a metric over a bench's images; a plan is sampled once, and read back from the trace.

    Attributes:
        part: what the images are for, as the trace names it.
        references: of all examples.
        work: of plans; `reference_work` is the reference run's.
    """

    part: str
    bench: Bench
    fits: Fits
    references: Tensor
    trace: Trace
    metric: str
    work: Work
    reference_work: float
    ceiling: Ceiling
    confidence: float | None = None
    _known: dict[Plan, tuple[int, MetricValue]] = field(default_factory=dict)
    _ratios: dict[Plan, float] = field(default_factory=dict)
    _beginnings: dict[tuple[str, Fill], defaultdict[tuple[int, ...], Beginnings]] = field(default_factory=dict)

    @property
    def sign(self) -> int:
        return 1 if self.bench.metric(self.metric).higher_is_better else -1

    @cached_property
    def stop(self) -> EarlyStop:
        return EarlyStop.of(self.bench, [self.metric], self.confidence)

    def ratio(self, plan: Plan) -> float:
        """Multiply-accumulates of a plan, as a share of the reference run's."""
        bare = replace(plan, coefficients=None)
        if bare not in self._ratios:
            self._ratios[bare] = self.work.of(bare) / self.reference_work
        return self._ratios[bare]

    def score(self, plan: Plan, look: Positions | None = None) -> float:
        """The mean, higher is better; infinite where all images equal their references."""
        value = self.look(plan, look or self.stop.looks[-1])
        return math.inf if value.value is None else self.sign * value.value

    def knows(self, plan: Plan, look: Positions | None = None) -> bool:
        """Whether a plan's score is known already."""
        return plan in self._known and self._known[plan][0] >= len(look or self.stop.looks[-1])

    def better(self, plan: Plan, other: Plan) -> bool:
        """Whether a plan scores higher, or as high for less work; what loses clearly is not sampled on all images."""
        for look in self.stop.looks[:-1]:
            found = self.stop.better(self._only(plan, look), self._only(other, look), look)
            if found is not None and found is not (self.sign > 0):
                return False
        return (self.score(plan), -self.ratio(plan)) > (self.score(other), -self.ratio(other))

    def gain(self, plan: Plan, other: Plan) -> tuple[float, float]:
        """The mean difference image by image, and its standard error."""
        own, others = (self.look(one, self.stop.looks[-1]) for one in (plan, other))
        differences = [
            self.sign * (own.per_image[i] - others.per_image[i]) for i in own.per_image if i in others.per_image
        ]
        if len(differences) < 2:
            return 1.0, 0.0
        return statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))

    def _only(self, plan: Plan, look: Positions) -> MetricValue:
        value, looked = self.look(plan, look), {self.bench.examples[position].index for position in look}
        return MetricValue(value.value, {i: number for i, number in value.per_image.items() if i in looked})

    def look(self, plan: Plan, look: Positions) -> MetricValue:
        """What is known of a plan, from these images at least.

        Raises:
            IdcError: nothing was compared.
        """
        looked, earlier = self._known.get(plan, (0, MetricValue(None, {})))
        fresh = sorted(look[looked:])
        if not fresh:
            return earlier
        fitted = len(self.fits.bench.examples) if not looked and wants_coefficients(plan.sampler) else 0
        taken = len(plan) * (len(fresh) + fitted)
        self.ceiling.spent += taken
        key = {"part": self.part, "plan": plan.to_json(), "num_images": len(look)}
        row = self.trace.find(**key)
        if row is None:
            began = time.perf_counter()
            states = self._beginnings.setdefault((plan.sampler, plan.fill), defaultdict(partial(Beginnings, STATES)))
            images = self.bench.images(
                self.fits.pipeline, self.fits.ready(plan), f"{len(plan)} steps", fresh, states, self.fits.depths
            )
            value = self.bench.measure([self.metric], images, self.references[fresh], fresh)[self.metric]
            value = together(earlier, value) if looked else value
            if value.value is None and not value.perfect:
                raise IdcError(f"plan.metric={self.metric} cannot judge a plan: {value.note}; choose another")
            row = self.trace.append(
                key
                | {"macs_ratio": self.ratio(plan), self.metric: value.value, "perfect": value.perfect}
                | {"per_image": value.per_image, "step_images": taken}
                | {"evaluation_seconds": round(time.perf_counter() - began, 3)}
            )
            say(
                f"  {self.part}: {words(plan)}: macs {self.ratio(plan):.4f}, {self.metric} "
                f"{in_words(value.value, perfect=value.perfect)} ({len(look)} images)"
            )
        numbers = {int(index): number for index, number in row["per_image"].items()}
        self._known[plan] = len(look), MetricValue(row[self.metric], numbers, perfect=row["perfect"])
        return self._known[plan][1]


@dataclass(frozen=True)
class Budget:
    """A search of one menu under one budget.

    Attributes:
        macs: the most that a plan may take, as a share of the reference run.
        lists: families of timesteps that seeds are made of.
        guidance: of all plans.
        most_steps: of a plan.
    """

    macs: float
    menu: Menu
    lists: tuple[str, ...]
    guidance: dict[str, float]
    most_steps: int = 50

    def fits(self, scores: Scores, plan: Plan) -> bool:
        return scores.ratio(plan) <= self.macs

    def best(self, scores: Scores, others: Sequence[Plan] = ()) -> list[Plan]:
        """The plans of the search, the best one first.

        Args:
            others: plans to begin with besides the menu's own seeds; those that do not fit are left out.

        Raises:
            IdcError: not even one step fits the budget.
        """
        menu, first = self.menu, scores.stop.looks[0]
        canonical = scores.work.computed

        def rank(plans: Iterable[Plan], look: Positions | None) -> list[Plan]:
            """The best first; beyond the ceiling those that are not known are left out, but for the first one."""
            values: dict[Plan, tuple[float, float]] = {}
            for plan in map(canonical, plans):
                if not values or not scores.ceiling.is_reached or scores.knows(plan, look):
                    values[plan] = -scores.score(plan, look), scores.ratio(plan)
            return sorted(values, key=values.__getitem__)

        # 1. which steps are shallow, over one family of lists; the other families for the best; then sampler and fill
        ranked = rank(self._patterns(scores), first)
        if not ranked:
            raise IdcError(
                f"plan.macs={self.macs:g} is less than the work of one step of this model; raise it, or give "
                "plan.patterns a shallower one"
            )
        shapes = [plan.depths for plan in ranked[:SEEDS]]
        lists = [plan for shape in shapes for plan in self._lists(scores, shape)]
        ranked = rank([*ranked[:SEEDS], *lists], first)
        ways = [
            replace(plan, sampler=sampler, fill=fill)
            for plan in ranked[:SEEDS]
            for sampler in menu.samplers
            for fill in menu.fills
        ]
        held = [
            replace(plan, steps=tuple(replace(s, refresh=s.depth is None) for s in plan.steps))
            for plan in (ranked[:SEEDS] if "refresh" in menu.moves else [])
        ]
        seeds = [plan for plan in (*ranked[:SEEDS], *ways, *held) if self.fits(scores, plan)]
        ranked = rank(seeds, first)[: SEEDS + 1]

        # 2. all images for the best of these and for what others have found, and a search from the best
        found = rank([*ranked, *(plan for plan in others if self.fits(scores, plan))], None)
        if menu.moves:
            around = lambda plan, stride: map(  # noqa: E731
                canonical, neighbours(plan, menu, partial(self.fits, scores), stride)
            )
            best = local_search(
                found[0],
                around,
                scores.better,
                scores.gain,
                may_go_on=lambda: not scores.ceiling.is_reached,
            )
            found = rank([best, *found], None)
        return found

    def _patterns(self, scores: Scores) -> Iterator[Plan]:
        for pattern in self.menu.patterns:
            for depth in (None,) if pattern == "full" else self.menu.depths:
                plan = self._longest(scores, lambda steps, p=pattern, d=depth: patterned(steps, p, d))  # type: ignore[misc]
                if plan is not None:
                    yield plan

    def _longest(self, scores: Scores, steps_over: Callable[[Sequence[float | int]], Any]) -> Plan | None:
        """The plan of most steps over the first family's list that fits."""
        found = None
        for number in range(1, self.most_steps + 1):
            timesteps = next(self._of_family(self.lists[0], number, scores), None)
            if timesteps is None:
                break
            plan = Plan(steps_over(timesteps), self.menu.samplers[0], self.menu.fills[0], self.guidance)
            if not self.fits(scores, plan):
                break
            found = plan
        return found

    def _lists(self, scores: Scores, depths: tuple[int | None, ...]) -> Iterator[Plan]:
        """Plans of some depths over the other lists."""
        for family in self.lists:
            for timesteps in self._of_family(family, len(depths), scores):
                steps = tuple(
                    replace(step, depth=depth)
                    for step, depth in zip(patterned(timesteps, "full", None), depths, strict=True)
                )
                yield Plan(steps, self.menu.samplers[0], self.menu.fills[0], self.guidance)

    def _of_family(self, family: str, number: int, scores: Scores) -> Iterator[Sequence[float | int]]:
        process = scores.bench.model.process
        if family == "trailing":
            yield trailing_timesteps(number, process)
        elif family == "uniform":
            yield uniform_timesteps(number, process)
        elif family == "gamma":
            # repeated timesteps, which steep ones have, would be steps for nothing
            lists = (gamma_timesteps(g, number, num_train_timesteps=process.num_train_timesteps) for g in GAMMAS)
            yield from (found for found in lists if len(set(found)) == number)
        elif family == "gits":
            teacher = scores.fits.run()
            if number <= len(teacher.timesteps):
                costs = jump_costs(teacher.timesteps, teacher.samples, teacher.originals, teacher.final, process)
                yield from lists_by_discount(teacher.timesteps, costs, number, DISCOUNTS)


def words(plan: Plan) -> str:
    """A plan as the console shows it: "999 700:5 300", a depth behind what is shallow."""
    marks = (
        f"{step.timestep:g}"
        + (f":{step.depth}" if step.depth else "")
        + ("" if step.refresh else "~")
        + ({"all": "", "held": "h", "text": "t"}[step.passes])
        for step in plan.steps
    )
    return f"{' '.join(marks)}, {plan.sampler}, {plan.fill}"
