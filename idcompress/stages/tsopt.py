"""Find the timesteps that best keep the many-step result at few steps (Alg. 2)"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import registry
from ..adapters.pipeline import alphas_cumprod
from ..artifacts import files
from ..artifacts.recipe import Recipe
from ..artifacts.run_dir import RunDir
from ..artifacts.trace import Trace
from ..config import Config
from ..console import say
from ..metrics._base import number_or_equal
from ..types import Schedule, ScheduleRequest
from ._bench import Bench, open_bench
from ._run import provenance, with_depth


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Search a timestep list for every wanted step count; one recipe each.

    Writes trace.jsonl (a row per sampled list) and metrics.json.
    """
    recipe = with_depth(recipes[0], config)
    search = configured_search(config)
    bench = open_bench(config, recipe, split="search", num_samples=config.tsopt.num_samples)
    recipe = recipe.derive_model(bench.model.source)
    pipeline = bench.model.for_recipe(recipe)

    # 1. the many-step result to come close to: this model's own, or the full model's
    like = None if config.tsopt.reference == "full" else recipe
    references = bench.references(like, config.tsopt.reference_steps, f"{config.tsopt.reference_steps}-step reference")
    trace, made, summaries = run_dir.trace(), [], []
    for num_inference_steps in config.step_counts():
        # 2. uniform first: what there is to beat
        score = _score(bench, pipeline, references, trace, num_inference_steps)
        uniform = score(bench.uniform(num_inference_steps), gamma=1.0)
        # 3. the strategy's search; it sees nothing but a score
        schedule = search(pipeline, num_inference_steps, score)
        found = score(schedule.timesteps)
        # 4. the recipe
        say(_line(num_inference_steps, schedule, uniform, found))
        summaries.append(
            {
                "num_inference_steps": num_inference_steps,
                "timesteps": schedule.timesteps,
                "psnr": found,
                "psnr_uniform": uniform,
                **schedule.details,
            }
        )
        details = {"strategy": config.timesteps["name"], "reference": config.tsopt.reference}
        details |= {k: v for k, v in schedule.details.items() if k != "walk"}
        entry = provenance("tsopt", config, run_dir, bench.photographs, **details)
        made.append(recipe.derive(entry, timesteps=schedule.timesteps, guidance=config.guidance()))
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
            "searches": summaries,
        },
    )
    return made


def configured_search(config: Config) -> Callable[[Any, int, Callable[..., float]], Schedule]:
    """The configured strategy, bound to its parameters: (pipeline, number of steps, score) -> its answer.

    Raises:
        IdcError: no such strategy, or parameters that it does not take.
    """
    strategy = registry.load("timesteps", config.timesteps["name"], "timesteps").timesteps
    parameters = {name: value for name, value in config.timesteps.items() if name != "name"}
    registry.bind(strategy, parameters, "timesteps")

    def search(pipeline: Any, num_inference_steps: int, score: Callable[..., float]) -> Schedule:
        request = ScheduleRequest(
            num_inference_steps=num_inference_steps,
            num_train_timesteps=pipeline.scheduler.config.num_train_timesteps,
            alphas_cumprod=tuple(alphas_cumprod(pipeline).tolist()),
            score=score,
            seed=config.seed,
        )
        schedule: Schedule = strategy(request, **parameters)
        return schedule

    return search


def _score(
    bench: Bench, pipeline: Any, references: Tensor, trace: Trace, num_inference_steps: int
) -> Callable[..., float]:
    """Mean PSNR (dB) to the reference as a function of the list; every list is sampled once and then read back."""

    def score(timesteps: list[int], **known: float) -> float:
        row = trace.find(num_inference_steps=num_inference_steps, timesteps=timesteps)
        if row is None:
            began = time.perf_counter()
            outputs = bench.images(pipeline, timesteps, f"{num_inference_steps} steps")
            value = bench.measure(["psnr"], outputs, references)["psnr"]
            row = trace.append(
                {
                    "num_inference_steps": num_inference_steps,
                    **known,
                    "timesteps": timesteps,
                    "psnr": value.value,
                    "evaluation_seconds": round(time.perf_counter() - began, 3),
                }
            )
            say(f"  {_named(known)}psnr {number_or_equal(value.value)}")
        return math.inf if row["psnr"] is None else float(row["psnr"])

    return score


def _named(known: dict[str, float]) -> str:
    return "".join(f"{name} {value:.4f}  " for name, value in known.items())


def _line(steps: int, schedule: Schedule, uniform: float, found: float) -> str:
    gamma = schedule.details.get("gamma")
    name = f"gamma {gamma:.4g}" if isinstance(gamma, float) else "timesteps"
    return f"{steps} steps: {name} {schedule.timesteps}, {found:.2f} dB against uniform's {uniform:.2f} dB"
