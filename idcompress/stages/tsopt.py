"""Find the timesteps that best keep the many-step result at few steps (Alg. 2)"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

from ..bench.fitting import Lists, joined
from ..config import Config
from ..console import say
from ..core.plan import Plan, Step
from ..errors import IdcError
from ..metrics._metric import ImageMetric, in_words, perfect_ones
from ..runs import files
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..runs.trace import Trace
from ..types import Schedule
from ._run import provenance, with_depth
from ._values import bench_for, configured_search, fit_settings, uniform_plan, wants_run

Score = Callable[..., float]


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Search a timestep list for every wanted step count; one recipe each.

    Writes trace.jsonl (a row per sampled list) and metrics.json.
    """
    recipe = with_depth(recipes[0], config)
    search = configured_search(config)
    bench = bench_for(config, recipe, split="search", num_samples=config.tsopt.num_samples)
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
        score = _score(lists, plan, references, trace, metric)
        uniform_timesteps = list(plan.timesteps)
        uniform = score(uniform_timesteps, gamma=1.0)
        # 3. the strategy's search; it sees what it asks for, and nothing else
        schedule = search(
            process,
            num_inference_steps,
            score=score,
            teacher=reference_run,
            denoiser=lambda plan=plan: bench.denoisers(pipeline, plan, reference_run().final),
        )
        found = score(schedule.timesteps)
        plan = lists.finished(_over(plan, schedule.timesteps))
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


def _over(plan: Plan, timesteps: list[float]) -> Plan:
    return dataclasses.replace(plan, steps=tuple(map(Step, timesteps)))


def _score(lists: Lists, plan: Plan, references: Tensor, trace: Trace, metric: str) -> Score:
    """The mean of a metric as a function of the list, higher is better; every list is sampled once and then read back.

    Images that all equal their references are the best that there can be; where nothing was compared there is no score.
    A list of the trace that has no number, and of which the trace does not say why, is sampled again.
    """
    bench = lists.bench
    sign = 1 if bench.metric(metric).higher_is_better else -1

    def score(timesteps: list[float], **known: float) -> float:
        tried = _over(plan, timesteps)
        row = trace.find(num_inference_steps=len(tried), timesteps=list(tried.timesteps))
        if row is None or (row[metric] is None and metric not in row.get("perfect", ())):
            began = time.perf_counter()
            parts = [
                (some, bench.images(lists.pipeline, fitted, f"{len(tried)} steps", some, lists.beginnings))
                for some, fitted in lists.plans(tried)
            ]
            value = bench.measure([metric], joined(parts), references)[metric]
            if value.value is None and not value.perfect:
                raise IdcError(f"tsopt.metric={metric} cannot judge a list: {value.note}; choose another")
            row = trace.append(
                {
                    "num_inference_steps": len(tried),
                    **known,
                    "timesteps": list(tried.timesteps),
                    metric: value.value,
                    **perfect_ones({metric: value}),
                    "evaluation_seconds": round(time.perf_counter() - began, 3),
                }
            )
            say(f"  {_named(known)}{metric} {in_words(value.value, perfect=value.perfect)}")
        return math.inf if metric in row.get("perfect", ()) else sign * float(row[metric])

    return score


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
