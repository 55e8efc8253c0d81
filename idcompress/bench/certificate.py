"""What a plan is worth on images that neither fit nor search has seen, against others of its cost, and for whom not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ..console import say
from ..core.plan import Plan
from ..core.timestep_search import trailing_timesteps
from ..metrics._metric import MetricValue, in_words
from ..runs.trace import Trace
from .bench import Bench
from .comparison import Row, kinds_of, only, paired
from .costs import Work
from .translate import uniform_plan

# The plain solvers of the full model, by what they are called: sampler, and family of timesteps.
PLAIN = {
    "DDIM, uniform steps": ("ddim", "uniform"),
    "DDIM, trailing steps": ("ddim", "trailing"),
    "DPM-Solver++ 2M, trailing steps": ("dpm_solver", "trailing"),
    "UniPC, trailing steps": ("unipc", "trailing"),
}
# The second reference is a result of the full model by another solver, as long as people use it: 20 steps beside 50.
SECOND_SAMPLER, SECOND_SHARE = "dpm_solver", 0.4


@dataclass
class Certifier:
    """Measures plans on a bench of unseen images; what was measured once is read back from the trace.

    Attributes:
        pipeline: that plans are of.
        many: the plan of the full model whose result searches compare with.
        work: of plans of `pipeline`, and of the full model's.
    """

    bench: Bench
    pipeline: Any
    many: Plan
    trace: Trace
    metric: str
    work: Work
    full_work: Work
    seed: int = 0

    @cached_property
    def references(self) -> dict[str, Tensor]:
        """What plans are compared with, (N, 3, H, W) by name; the search's own kind comes first."""
        second = self.plain(SECOND_SAMPLER, "trailing", max(1, round(SECOND_SHARE * len(self.many))))
        plans = {f"{len(plan)} steps by {plan.sampler}": plan for plan in (self.many, second)}
        return {name: self.bench.references(None, plan, f"reference, {name}") for name, plan in plans.items()}

    def plain(self, sampler: str, family: str, steps: int) -> Plan:
        """The full model's plan of so many plain steps."""
        process = self.bench.model.process
        plan = uniform_plan(process, steps, sampler=sampler, guidance=self.many.guidance)
        if family == "trailing":
            plan = Plan.over(trailing_timesteps(steps, process), sampler=sampler, guidance=self.many.guidance)
        return plan

    def certificate(self, plan: Plan, budget: float, others: Mapping[str, Plan]) -> Row:
        """What is to be said of a plan, as JSON.

        Args:
            plan: of `pipeline`, with its numbers.
            budget: share of the reference's multiply-accumulates that the plain solvers may take, at least one step.
            others: plans of the same pipeline and budget to set beside it, by name.
        """
        whole = self.full_work.of(self.many)
        steps = max(1, math.floor(budget * len(self.many) + 1e-9))
        rivals = {name: (self.plain(*way, steps), True) for name, way in PLAIN.items()}
        rivals |= {name: (other, False) for name, other in others.items() if other != plan}
        own, rows = self._values(plan, whole=False), []
        for name, (other, plain) in rivals.items():
            values = self._values(other, whole=plain)
            spent = (self.full_work if plain else self.work).of(other) / whole
            row = {"label": name, "plain": plain, "num_inference_steps": len(other), "macs_ratio": spent}
            rows.append(row | {"against": {key: self._against(own[key], value) for key, value in values.items()}})
        made = {
            "metric": self.metric,
            "unit": self.bench.metric(self.metric).unit,
            "higher_is_better": self._higher,
            "num_images": len(self.bench.examples),
            "images": self.bench.photographs,
            "kinds": {kind: len(some) for kind, some in self._kinds.items()},
            "references": list(self.references),
            "macs_ratio": self.work.of(plan) / whole,
            "plan": {key: self._quality(value) for key, value in own.items()},
            "rivals": rows,
        }
        return made | {"sentence": sentence(made)}

    @property
    def _higher(self) -> bool:
        return self.bench.metric(self.metric).higher_is_better

    @cached_property
    def _kinds(self) -> dict[str, set[int]]:
        return kinds_of(self.bench.examples)

    def _values(self, plan: Plan, *, whole: bool) -> dict[str, MetricValue]:
        """A plan's quality image by image, by reference."""
        key = {"part": "certificate", "whole": whole, "plan": plan.to_json()}
        row = self.trace.find(**key)
        if row is None:
            pipeline = self.bench.model.pipeline if whole else self.pipeline
            images = self.bench.images(pipeline, plan, f"{len(plan)} steps by {plan.sampler}")
            found = {
                name: vars(self.bench.measure([self.metric], images, references)[self.metric])
                for name, references in self.references.items()
            }
            row = self.trace.append(key | {"values": found, "step_images": len(plan) * len(images)})
            model = "the full model's " if whole else ""
            first = MetricValue(**found[next(iter(found))])
            say(
                f"  certificate: {model}{len(plan)} steps by {plan.sampler}: {self.metric} "
                f"{in_words(first.value, perfect=first.perfect)} ({len(images)} images)"
            )
        return {name: MetricValue.of_json(value) for name, value in row["values"].items()}

    def _against(self, own: MetricValue, other: MetricValue) -> Row:
        """A rival's quality, and the plan's difference to it: for all images, and by kind of input."""
        found = self._quality(other) | self._difference(own, other)
        for kind, some in self._kinds.items():
            found["by_kind"][kind] |= self._difference(only(own, some), only(other, some))
        return found

    def _difference(self, own: MetricValue, other: MetricValue) -> Row:
        return paired(own, other, "plan_minus_this", higher_is_better=self._higher, seed=self.seed) | {
            "nearer": sum(
                self._sign * (value - own.per_image[i]) > 0
                for i, value in other.per_image.items()
                if i in own.per_image
            )
        }

    @property
    def _sign(self) -> int:
        return 1 if self._higher else -1

    def _quality(self, value: MetricValue) -> Row:
        """The mean, the mean of the worst tenth of the images, and the mean of every kind of input."""
        worst = sorted(value.per_image.values(), reverse=not self._higher)[: math.ceil(len(value.per_image) / 10)]
        return {
            "value": value.value,
            "perfect": value.perfect,
            "worst_tenth": math.fsum(worst) / len(worst) if worst else None,
            "by_kind": {kind: {"value": only(value, some).value} for kind, some in self._kinds.items()},
        }


def sentence(certificate: Row) -> str:
    """The certificate in plain words: how good, how much better than the best plain solver, and for whom it is not."""
    first, *more = certificate["references"]
    best = best_plain(certificate, first)
    own, other = certificate["plan"][first], best["against"][first]
    number = certificate["num_images"]
    text = f"On {number} image{'s' if number > 1 else ''} that neither fit nor search has seen, the plan comes to "
    text += f"{_number(certificate, own['value'])} against {first} at {100 * certificate['macs_ratio']:.3g} % of their "
    text += f"work, and the best plain solver of such a cost ({best['label']}, {best['num_inference_steps']}) to "
    text += f"{_number(certificate, other['value'])}: {_verdict(certificate, other)}."
    without = [
        *(
            f"for {kind} inputs"
            for kind in certificate["kinds"]
            if not _gains(best_plain(certificate, first, kind)["against"][first]["by_kind"][kind])
        ),
        *(["for the worst tenth of the images"] if not _better_worst(certificate, first) else []),
        *(
            f"against {key} in place of that reference"
            for key in more
            if not _gains(best_plain(certificate, key)["against"][key])
        ),
        *(
            f"over {rival['label']} under the same budget"
            for rival in certificate["rivals"]
            if not rival["plain"] and not _gains(rival["against"][first])
        ),
    ]
    nearer = other["nearer"]
    text += (
        f" No gain is shown {_listed(without)}."
        if without
        else " A gain is shown for every kind of input, for the worst tenth, and against all else that was tried."
    )
    return text + f" On {nearer} of {number} images that plain solver is nearer."


def best_plain(certificate: Row, reference: str, kind: str | None = None) -> Row:
    """The rival among the plain solvers that is nearest to a reference, over all images or one kind of them."""

    def value(row: Row) -> float:
        against = row["against"][reference]
        found = (against if kind is None else against["by_kind"][kind])["value"]
        sign = 1 if certificate["higher_is_better"] else -1
        return math.inf if found is None else sign * float(found)

    rows: Iterator[Row] = (row for row in certificate["rivals"] if row["plain"])
    return max(rows, key=value)


def _gains(against: Row) -> bool:
    return bool(against.get("plan_minus_this", {}).get("verdict") == "better")


def _better_worst(certificate: Row, reference: str) -> bool:
    sign = 1 if certificate["higher_is_better"] else -1
    values = [row["against"][reference]["worst_tenth"] for row in certificate["rivals"] if row["plain"]]
    own = certificate["plan"][reference]["worst_tenth"]
    return own is None or all(value is not None and sign * own > sign * value for value in values)


def _verdict(certificate: Row, against: Row) -> str:
    minus = against.get("plan_minus_this")
    if not minus:
        return "the same images"
    low, high = minus["interval"]
    return f"{minus['verdict']} ({minus['mean']:+.2f} [{low:.2f}, {high:.2f}])"


def _number(certificate: Row, value: float | None) -> str:
    return "no difference" if value is None else f"{certificate['metric']} {value:.4g} {certificate['unit']}".rstrip()


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
