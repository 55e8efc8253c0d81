"""Plans for samplers that want numbers: fitted to a reference run over a bench's examples, and scored honestly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from ..core.fit import FitSettings, States, Sums, fit_plan, state_at
from ..core.plan import Plan
from ..core.sample import Beginnings, Moment
from ..types import Teacher
from .bench import Bench
from .costs import Sampled, called_steps
from .translate import wants_coefficients


@dataclass
class Lists:
    """Samples plans that differ in their timesteps alone; what they have in common at the beginning is sampled once.

    Where the sampler wants numbers they are fitted: for images that are to be judged on the other examples
    (cross-fitting), for a plan that is to be kept on all of them.

    Attributes:
        bench: on whose examples they are fitted and judged.
        pipeline: that is sampled.
        settings: of the fit.
        depths: of the plans' steps; what was computed there is kept for all plans.
        run: gives the reference run of all examples; asked for once, where something is to be fitted.
        beginnings: what was sampled, by batch; `Bench.images` goes on from there.
    """

    bench: Bench
    pipeline: Any
    settings: FitSettings
    run: Callable[[], Teacher]
    depths: Sequence[int] = ()
    beginnings: defaultdict[tuple[int, ...], Beginnings] = field(default_factory=lambda: defaultdict(Beginnings))
    _sampled: Sampled = field(default_factory=Sampled)

    def plans(self, plan: Plan) -> list[tuple[list[int], Plan]]:
        """How to sample all examples so that a plan can be judged: positions of examples, and the plan for them.

        Without numbers to fit it is the plan for all; else each fold's has numbers that were fitted on the others.
        """
        if not wants_coefficients(plan.sampler):
            return [(list(range(len(self.bench.examples))), plan)]
        return [(fold, self.fitted(plan, others)) for fold, others in self._parted()]

    def work(self, plan: Plan) -> int:
        """Step-images that judging a plan takes, fits included, beyond those of plans that were asked for before."""
        plan = replace(plan, steps=tuple(called_steps(plan)))
        if not wants_coefficients(plan.sampler):
            return sum(self._sampled.add("", plan, len(self.bench.examples)))
        return sum(
            sum(self._sampled.add((tuple(others), tuple(part)), plan, len(part)))
            for fold, others in self._parted()
            for part in (others, fold)
        )

    def finished(self, plan: Plan) -> Plan:
        """The plan as it is to be kept, with numbers fitted on all examples where its sampler wants some."""
        return self.fitted(plan, range(len(self.bench.examples))) if wants_coefficients(plan.sampler) else plan

    @property
    def folds(self) -> list[list[int]]:
        """The examples' positions in as many parts as there shall and can be."""
        number = len(self.bench.examples)
        parts = min(self.settings.folds, number)
        return [list(range(first, number, parts)) for first in range(parts)]

    def _parted(self) -> Iterator[tuple[list[int], list[int]]]:
        """Each fold, and the examples that its numbers are fitted on."""
        for fold in self.folds:
            others = [position for other in self.folds if other != fold for position in other]
            yield fold, others or fold

    def fitted(self, plan: Plan, positions: Sequence[int]) -> Plan:
        """The plan with numbers that were fitted on some examples: whole folds."""

        teacher = self._teacher  # which all processes make together, before each has batches of its own

        def over_batches(beginning: Plan, added: Callable[[Sequence[Moment], States], Sums]) -> Iterator[Sums]:
            def of(batch: tuple[int, ...]) -> Sums:
                moments = self.bench.history(self.pipeline, beginning, batch, self.beginnings[batch], self.depths)
                return added(moments, self._states(teacher, batch, moments[-1].sample))

            return self.bench.each(of, self._batches(positions), f"fit of {len(beginning)} steps")

        return fit_plan(plan, self.bench.model.process, over_batches, self.settings)

    def _batches(self, positions: Sequence[int]) -> list[tuple[int, ...]]:
        """Batches within folds, so that every fit meets the same ones."""
        wanted = set(positions)
        return [batch for fold in self.folds if wanted.issuperset(fold) for batch in self.bench.batches(fold)]

    def _states(self, teacher: Teacher, batch: tuple[int, ...], like: Tensor) -> States:
        picked = list(batch)

        def state(timestep: float | int | None) -> Tensor:
            parts = teacher.samples[:, picked], teacher.originals[:, picked], teacher.final[picked]
            return state_at(timestep, teacher.timesteps, *parts, self.bench.model.process).to(like)

        return state

    @cached_property
    def _teacher(self) -> Teacher:
        return self.run()
