"""Find the timesteps that best keep the many-step result at few steps (Alg. 2)"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor

from ..adapters.layers import names_of_layers
from ..bench.early_stop import EarlyStop, Positions
from ..bench.fitting import Lists
from ..bench.translate import wants_coefficients
from ..config import Config
from ..console import say
from ..core.plan import Plan
from ..errors import IdcError
from ..metrics._metric import ImageMetric, MetricValue, in_words, perfect_ones, together
from ..runs import files
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..runs.trace import Trace
from ..types import Schedule
from ._run import provenance, with_depth
from ._values import bench_for, check_process, configured_search, fit_settings, uniform_plan, wants_run

SHARED = True  # among the processes of devices=N


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Search a timestep list for every wanted step count; one recipe each.

    Writes trace.jsonl (a row per look at a list) and metrics.json.
    """
    recipe = with_depth(recipes[0], config)
    search = configured_search(config)
    bench = bench_for(config, recipe, split="search", num_samples=config.tsopt.num_samples)
    check_process(config, bench.model.process)
    recipe = recipe.derive_model(bench.model.source)
    process, pipeline, metric = bench.model.process, bench.model.for_recipe(recipe), config.tsopt.metric
    sign = 1 if bench.metric(metric).higher_is_better else -1

    # 1. the many-step result to come close to: this model's own, or the full model's; where its states are wanted, too,
    # its images come from the same run
    like = None if config.tsopt.reference == "full" else recipe
    many = uniform_plan(config, process, config.tsopt.reference_steps)
    what = f"{config.tsopt.reference_steps}-step reference"
    reference_run = cache(lambda: bench.reference_run(like, many, what))
    if wants_run(config):
        reference_run()
    references = bench.references(like, many, what)
    lists = Lists(bench, pipeline, fit_settings(config), reference_run)
    trace, made, summaries = run_dir.trace(), [], []
    for num_inference_steps in config.step_counts():
        # 2. uniform first: what there is to beat
        plan = dataclasses.replace(uniform_plan(config, process, num_inference_steps), sampler=config.sampler)
        scores = Scores(lists, plan, references, trace, metric, config.early_stop)
        uniform_timesteps = list(plan.timesteps)
        uniform = scores.score(uniform_timesteps, gamma=1.0)
        # 3. the strategy's search; it sees what it asks for, and nothing else
        schedule = search(
            process,
            num_inference_steps,
            score=scores.score,
            better=scores.better if len(scores.stop.looks) > 1 else None,
            teacher=reference_run,
            denoiser=lambda plan=plan: bench.denoisers(pipeline, plan, reference_run().final),
            layers=names_of_layers(pipeline.unet),
        )
        found = scores.score(schedule.timesteps, schedule.skip)
        plan = lists.finished(_over(plan, schedule.timesteps, schedule.skip))
        # 4. the recipe
        say(_line(bench.metric(metric), sign, num_inference_steps, schedule, uniform, found))
        summaries.append(_summary(metric, sign, uniform_timesteps, schedule, uniform, found))
        details = {"strategy": config.timesteps["name"], "reference": config.tsopt.reference}
        details |= {k: v for k, v in schedule.details.items() if k != "walk"}
        if plan.coefficients is not None:
            key = recipe.fit_key(plan, process.to_json())
            details["fit"] = {"key": key, **dataclasses.asdict(lists.settings), "num_images": len(bench.examples)}
        entry = provenance("tsopt", config, run_dir, bench.photographs, **details)
        made.append(recipe.derive(entry, plan=plan, free_steps=False))
    files.write_json(
        run_dir / "metrics.json",
        {
            "version": 1,
            "stage": "tsopt",
            "task": recipe.task,
            "model": recipe.model["name"],
            "depth": recipe.depth,
            "num_images": len(bench.examples),
            "reference": config.tsopt.reference,
            "reference_steps": config.tsopt.reference_steps,
            "metric": metric,
            "searches": summaries,
        },
    )
    return made


def _over(plan: Plan, timesteps: Sequence[float], skip: Sequence[tuple[str, ...]] = ()) -> Plan:
    return dataclasses.replace(plan, steps=Plan.over(timesteps, skip=skip).steps)


class Scores:
    """Lists of timesteps, by the mean of a metric of what they make; higher is better.

    An image is sampled once per list. The trace has a row for each look at a list, which says of how many images it
    knows and how many were skipped; the last row of a list knows all that was seen of it.

    Args:
        lists: samples them.
        plan: whose sampler and guidance all lists share.
        references: of all examples.
        confidence: of a comparison before all images were looked at; None compares on all.
    """

    def __init__(
        self,
        lists: Lists,
        plan: Plan,
        references: Tensor,
        trace: Trace,
        metric: str,
        confidence: float | None,
    ) -> None:
        self.bench, self.lists, self.plan, self.references, self.trace = lists.bench, lists, plan, references, trace
        self.metric, self.sign = metric, 1 if self.bench.metric(metric).higher_is_better else -1
        fits = wants_coefficients(plan.sampler)  # which takes all images anyway
        self.stop = EarlyStop.of(self.bench, [metric], None if fits else confidence)

    def score(self, timesteps: list[float], skip: Sequence[tuple[str, ...]] = (), **known: float) -> float:
        """The mean over all images. Where all equal their references there is nothing better: infinity.

        Args:
            skip: layers that each step passes by, if any do.
            known: goes into the trace's row, like gamma=0.8.

        Raises:
            IdcError: nothing was compared, so there is no score.
        """
        value = self._look(timesteps, self.stop.looks[-1], known, skip)
        return math.inf if value.value is None else self.sign * value.value

    def better(self, timesteps: list[float], other: list[float], **known: tuple[float, float]) -> bool:
        """Whether a list scores higher than another, by the first look that leaves no doubt.

        Args:
            known: as for `score`, of the one and of the other.
        """
        if timesteps == other:
            return False
        ours, theirs = ({name: pair[which] for name, pair in known.items()} for which in (0, 1))
        for look in self.stop.looks[:-1]:
            found = self.stop.better(self._at(timesteps, look, ours), self._at(other, look, theirs), look)
            if found is not None:
                return found is (self.sign > 0)
        return self.score(timesteps, (), **ours) > self.score(other, (), **theirs)

    def _at(self, timesteps: list[float], look: Positions, known: dict[str, float]) -> MetricValue:
        """The values of a look's images, and no others."""
        value, looked = self._look(timesteps, look, known), {self.bench.examples[position].index for position in look}
        return MetricValue(value.value, {i: number for i, number in value.per_image.items() if i in looked})

    def _look(
        self, timesteps: list[float], look: Positions, known: dict[str, float], skip: Sequence[tuple[str, ...]] = ()
    ) -> MetricValue:
        """What is known of a list, from these images at least."""
        tried = _over(self.plan, timesteps, skip)
        row: dict[str, Any] = {"num_inference_steps": len(tried), **known, "timesteps": list(tried.timesteps)}
        skipped = [list(step.skip) for step in tried.steps] if tried.skipped else None
        row |= {} if skipped is None else {"skip": skipped}
        seen = self.trace.last(num_inference_steps=len(tried), timesteps=row["timesteps"], skip=skipped)
        earlier, looked = MetricValue(None, {}), 0
        if seen is not None and (seen[self.metric] is not None or self.metric in seen.get("perfect", ())):
            numbers = {int(index): number for index, number in seen.get("per_image", {}).items()}
            earlier = MetricValue(seen[self.metric], numbers, perfect=self.metric in seen.get("perfect", ()))
            row, looked = seen | known, seen.get("num_images", len(self.bench.examples))
        fresh = sorted(look[looked:])
        if not fresh:
            return earlier
        began = time.perf_counter()
        images = self.bench.images_by_plan(
            self.lists.pipeline, self.lists.plans(tried), f"{len(tried)} steps", fresh, self.lists.beginnings
        )
        value = self.bench.measure([self.metric], images, self.references[fresh], fresh)[self.metric]
        value = together(earlier, value) if looked else value
        if value.value is None and not value.perfect:
            raise IdcError(f"tsopt.metric={self.metric} cannot judge a list: {value.note}; choose another")
        row.pop("perfect", None)
        unseen = len(self.bench.examples) - len(look)
        self.trace.append(
            row
            | {self.metric: value.value, **perfect_ones({self.metric: value})}
            | {"num_images": len(look), "num_skipped": unseen, "per_image": value.per_image}
            | {"evaluation_seconds": round(time.perf_counter() - began, 3)}
        )
        few = f"  ({len(look)} of {len(self.bench.examples)} images)" if unseen else ""
        named = _named({name: row[name] for name in known})
        say(f"  {named}{self.metric} {in_words(value.value, perfect=value.perfect)}{few}")
        return value


def _named(known: dict[str, float]) -> str:
    return "".join(f"{name} {value:.4f}  " for name, value in known.items())


def _summary(
    metric: str, sign: int, uniform_timesteps: list[float], schedule: Schedule, uniform: float, found: float
) -> dict[str, Any]:
    """A search's row of metrics.json; the uniform list is what every search begins with."""
    return {
        "num_inference_steps": len(uniform_timesteps),
        "timesteps": schedule.timesteps,
        "uniform_timesteps": uniform_timesteps,
        metric: sign * found,
        f"{metric}_uniform": sign * uniform,
        **schedule.details,
    }


def _line(metric: ImageMetric, sign: int, steps: int, schedule: Schedule, uniform: float, found: float) -> str:
    gamma = schedule.details.get("gamma")
    name = f"gamma {gamma:.4g}" if isinstance(gamma, float) else "timesteps"
    unit = f" {metric.unit}" if metric.unit else ""
    ours, theirs = (f"{sign * value:.{2 if unit else 4}f}{unit}" for value in (found, uniform))
    return f"{steps} steps: {name} {schedule.timesteps}, {ours} against uniform's {theirs}"
