"""The best plan of a model under a budget of multiply-accumulates: plans fitted on some images, scored on others."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice, takewhile
from typing import Any

from torch import Tensor

from ..console import say
from ..core.dynamic_programme import DISCOUNTS, jump_costs, lists_by_discount
from ..core.fit import FitSettings
from ..core.guidance import num_branches
from ..core.plan import Fill, Plan
from ..core.plan_search import Menu, Pattern, guidance_intervals, local_search, neighbours, patterned
from ..core.sample import Beginnings
from ..core.timestep_search import gamma_timesteps, trailing_timesteps, uniform_timesteps
from ..errors import IdcError
from ..metrics._metric import MetricValue, in_words, together
from ..runs.trace import Trace
from ..types import Teacher
from .bench import Bench
from .costs import Sampled, Work
from .early_stop import EarlyStop, Positions
from .fitting import Lists
from .translate import wants_coefficients

GAMMAS = (0.7, 0.85, 1.2, 1.5)  # of seeds; 1 is the uniform list
STATES = 16  # kept of each image's runs, so that plans go on from a common beginning
ROUNDING = 1e-9  # of sums of costs: 6 steps of 20 are 0.3 of their work
SEEDS = 3  # that go on to the next choice
STARTS = 2  # of local searches; the second one has what the first leaves of the ceiling
LISTS = 2  # of the best seed, which the next ones are tried over, too


class Ceiling:
    """Step-images that a search may take, counted as `Sampled` does.

    Attributes:
        spent: step-images so far.
        calls: samples that went through the networks for them: one per step-image and guidance pass.
    """

    def __init__(self, most: int) -> None:
        self.most, self.spent, self.calls = most, 0, 0
        self._sampled = Sampled()

    @property
    def is_reached(self) -> bool:
        return self.spent >= self.most

    def take(self, what: str, plan: Plan, images: int) -> int:
        """Count a plan that is sampled on the first images of some; returns what it adds to `spent`.

        Args:
            what: the images' name.
            plan: as it is computed.
        """
        fresh, branches = self._sampled.add(what, plan, images), num_branches(plan.guidance)
        self.calls += sum(number * step.num_passes(branches) for number, step in zip(fresh, plan.steps, strict=True))
        self.spent += sum(fresh)
        return sum(fresh)


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
        really = self.work.computed(plan)
        taken = self.ceiling.take(self.part, really, len(look))
        if wants_coefficients(plan.sampler):
            taken += self.ceiling.take("fit", really, len(self.fits.bench.examples))
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
        macs: the most that a plan may take, as a share of the reference run; infinite for no bound.
        lists: families of timesteps that seeds are made of.
        guidance: of all plans.
        most_steps: of a plan.
        bounds: further costs by their keys: what a plan takes, and the most that it may.
    """

    macs: float
    menu: Menu
    lists: tuple[str, ...]
    guidance: dict[str, float]
    most_steps: int = 50
    bounds: Mapping[str, tuple[Callable[[Plan], float], float]] = field(default_factory=dict)

    def fits(self, scores: Scores, plan: Plan) -> bool:
        costs = [(scores.ratio(plan), self.macs), *((of(plan), most) for of, most in self.bounds.values())]
        return all(cost <= most * (1 + ROUNDING) for cost, most in costs)

    def best(self, scores: Scores, others: Sequence[Plan] = ()) -> list[Plan]:
        """The plans of the search, the best one first.

        Args:
            others: plans to begin with besides the menu's own seeds, as they are and with the menu's first sampler and
                fill; those that do not fit are left out.

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

        # 1. which steps are shallow, over one list; other lists for the best, and for the next ones the best of those
        ranked = rank(self._patterns(scores), first)
        if not ranked:
            raise self._too_tight(scores)
        best, *others_like = ranked[:SEEDS]
        families = {canonical(plan): family for family, plan in self._lists(scores, best)}
        good = {families[plan] for plan in rank(families, first)[:LISTS]}
        more = [plan for like in others_like for family, plan in self._lists(scores, like) if family in good]
        ranked = rank([*ranked[:SEEDS], *families, *more], first)

        # 2. sampler and fill, side networks and guidance
        ways = [
            replace(plan, sampler=sampler, fill=fill)
            for plan in ranked[:SEEDS]
            for sampler in menu.samplers
            for fill in (menu.fills if plan.is_shallow else (plan.fill,))
        ]
        held = [
            replace(plan, steps=tuple(replace(s, refresh=s.depth is None) for s in plan.steps))
            for plan in (ranked[:SEEDS] if "refresh" in menu.moves else [])
        ]
        guided = [one for plan in ranked[:SEEDS] for one in guidance_intervals(plan, menu)]
        dressed = [replace(plan, sampler=menu.samplers[0], fill=menu.fills[0]) for plan in others]
        seeds = [plan for plan in (*ranked[:SEEDS], *ways, *held, *guided, *dressed) if self.fits(scores, plan)]
        ranked = rank(seeds, first)[: SEEDS + 1]

        # 3. all images for the best of these and for what others have found, and searches from the best of two shapes
        found = rank([*ranked, *(plan for plan in others if self.fits(scores, plan))], None)
        if menu.moves:

            def searched(start: Plan) -> Plan:
                return local_search(
                    start,
                    lambda plan, stride: map(canonical, neighbours(plan, menu, partial(self.fits, scores), stride)),
                    scores.better,
                    scores.gain,
                    may_go_on=lambda: not scores.ceiling.is_reached,
                )

            shapes: dict[tuple[int | None, ...], Plan] = {}  # of each the best plan, the best first
            for plan in found:
                shapes.setdefault(plan.depths, plan)
            found = rank([*map(searched, islice(shapes.values(), STARTS)), *found], None)
        return found

    def _patterns(self, scores: Scores) -> Iterator[Plan]:
        for plans in self._ever_longer(scores):
            *_, longest = (None, *takewhile(partial(self.fits, scores), plans))
            if longest is not None:
                yield longest

    def _ever_longer(self, scores: Scores) -> Iterator[Iterator[Plan]]:
        """By pattern and depth the plans of one step, of two, and so on, over the first family's lists."""

        def plans(pattern: Pattern, depth: int | None) -> Iterator[Plan]:
            # one depth at all steps leaves nothing to hold: with any other fill its first step computes everything
            fill: Fill = "zero" if pattern == "one_depth" and "zero" in self.menu.fills else self.menu.fills[0]
            for number in range(1, self.most_steps + 1):
                timesteps = next(self._of_family(self.lists[0], number, scores), None)
                if timesteps is None:
                    return
                yield Plan(patterned(timesteps, pattern, depth), self.menu.samplers[0], fill, self.guidance)

        for pattern in self.menu.patterns:
            for depth in (None,) if pattern == "full" else self.menu.depths:
                yield plans(pattern, depth)

    def _too_tight(self, scores: Scores) -> IdcError:
        """What to say where no plan fits: the first bound that one step alone breaks, and the least that it can be."""
        ones = [plan for plans in self._ever_longer(scores) for plan in islice(plans, 1)]
        costs = {"plan.macs": (scores.ratio, self.macs), **self.bounds}
        least = {key: min(of(plan) for plan in ones) for key, (of, _) in costs.items()}
        key = next((key for key, (_, most) in costs.items() if least[key] > most), None)
        if key is None:
            return IdcError(f"no plan of one step meets {' and '.join(costs)} together; raise one of them")
        return IdcError(
            f"{key}={costs[key][1]:g} is less than the work of one step of this model, {least[key]:.4g} at the least "
            f"with plan.patterns and plan.depths as they are; raise it, or give those a shallower one"
        )

    def _lists(self, scores: Scores, like: Plan) -> Iterator[tuple[tuple[str, int], Plan]]:
        """Plans with another's depths and fill over all lists, each with its family and its place there."""
        for family in self.lists:
            for place, timesteps in enumerate(self._of_family(family, len(like), scores)):
                steps = tuple(
                    replace(step, depth=depth)
                    for step, depth in zip(patterned(timesteps, "full", None), like.depths, strict=True)
                )
                yield (family, place), replace(like, steps=steps)

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
