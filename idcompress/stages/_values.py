"""From the configuration to the values that the rooms below take: data, models, benches and plans.

No room below the stages sees the configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from .. import registry
from ..bench import translate
from ..bench.bench import Bench, open_bench
from ..bench.calibration import Calibration
from ..bench.selection import DataSource, choose_photographs
from ..config import Config
from ..core.fit import FitSettings
from ..core.plan import Plan
from ..core.process import Process
from ..errors import IdcError
from ..images.photo_sets import Photograph
from ..runs.ranks import agreed
from ..runs.recipe import Recipe
from ..runs.timing import part
from ..sources.load import load_source, shared_model
from ..sources.model import Model, needs_of
from ..tasks._task import Task
from ..types import CutRequest, Schedule, ScheduleRequest


def make_task(config: Config, name: str) -> Task:
    """A task with its configured options; a recipe's task that is not the configured one gets its defaults.

    Raises:
        IdcError: an unknown option, or a value that it cannot have.
    """
    entry = registry.load("task", name, "task").Task
    options = config.task.options if name == config.task.name else {}
    task: Task = entry(**registry.bind(entry, options, "task.options"))
    return task


def data_of(config: Config) -> DataSource:
    """The configured data set."""
    data = config.data
    return DataSource(data.name, data.path, data.split, data.options, data.search_split)


def loading_settings(config: Config, recipe: Recipe) -> dict[str, Any]:
    """Device, dtype and prune method for a recipe's model, as `sources.load.load_source` takes them."""
    method = str(config.prune["name"]) if recipe.cut is None else recipe.cut.method
    own = {name: value for name, value in config.prune.items() if name != "name"} if recipe.cut is None else {}
    entry = registry.load("prune", method, "prune.name")
    parameters = registry.bind(entry.candidates, own, "prune")
    if recipe.cut is None:
        _check_needs(needs_of(entry, parameters), f"prune={method}", recipe.task)
    return {"device": config.device, "dtype": config.dtype, "prune": method, "parameters": parameters}


def load_model(config: Config, recipe: Recipe) -> Model:
    """A recipe's model, loaded anew."""
    return load_source(recipe.task, recipe.model, **loading_settings(config, recipe))


@part("load")
def bench_for(
    config: Config,
    recipe: Recipe,
    *,
    num_samples: int,
    split: str = "search",
    photos: Sequence[Photograph] | None = None,
    first: int = 0,
) -> Bench:
    """Load the model and choose the examples of a stage.

    Args:
        split: "search" or "evaluate"; a photograph never serves both. Evaluation leaves out every photograph that the
            recipe's stages have seen.
        photos: to use in place of a split's.
        first: of the num_samples examples, where only a portion of them is wanted.

    Raises:
        IdcError: the model does not load, or no photograph is left.
    """
    task = make_task(config, recipe.task)
    model = shared_model(recipe.task, recipe.model, **loading_settings(config, recipe))
    photos = choose_photographs(data_of(config), recipe, split, num_samples) if photos is None else photos
    return open_bench(
        task,
        model,
        photos,
        num_samples=num_samples,
        first=first,
        prompts=config.prompts(),
        resolution_px=config.resolution_px,
        identity={"name": f"{config.task.name}.{config.task.version}", "options": config.task.options},
        seed=config.seed,
        batch_size=config.batch_size,
        metrics=config.metrics,
        cache_gb=config.cache_gb,
    )


def cut_request(config: Config, recipe: Recipe, bench: Bench, num_samples: int) -> CutRequest:
    """What the prune method may use to find its candidates: what it asks for, and nothing else.

    Args:
        bench: of the search, on whose photographs the method calibrates.
    """
    needs = bench.model.needs
    if not needs:
        return CutRequest(seed=config.seed)
    photos = choose_photographs(data_of(config), recipe, "search", num_samples)
    calibration = Calibration(bench, photos, num_samples=num_samples, prompts=config.prompts())
    return CutRequest(
        batches=calibration.batches if "batches" in needs else None,
        loss=calibration.loss if "loss" in needs else None,
        seed=config.seed,
    )


def uniform_plan(config: Config, process: Process, num_inference_steps: int) -> Plan:
    """So many evenly spaced steps by the configured sampler and guidance."""
    return translate.uniform_plan(process, num_inference_steps, sampler=config.sampler, guidance=config.guidance())


def plan_of(config: Config, recipe: Recipe, process: Process) -> Plan:
    """What a recipe samples: its steps, by the configured sampler and guidance, which follow the recipe by default.

    A recipe whose number of steps is free has that many uniform ones; one without a plan has num_inference_steps.
    """
    if recipe.plan is None or recipe.free_steps:
        return uniform_plan(config, process, recipe.num_inference_steps or config.num_inference_steps)
    plan = dataclasses.replace(recipe.plan, sampler=config.sampler, guidance=config.guidance())
    return plan if translate.wants_coefficients(config.sampler) else dataclasses.replace(plan, coefficients=None)


def sampled_plan(config: Config, recipe: Recipe, process: Process) -> Plan:
    """The same for a command that samples it now, with the recipe's weights.

    Raises:
        IdcError: the configured sampler wants numbers, and the recipe has none that were fitted for all this.
    """
    plan = plan_of(config, recipe, process)
    if translate.wants_coefficients(config.sampler):
        recipe.check_fit(dataclasses.replace(plan, sampler=config.sampler), process.to_json())
    return plan


def fit_settings(config: Config) -> FitSettings:
    """How the configured sampler's numbers are fitted, if it wants some.

    Raises:
        IdcError: a setting that is out of range.
    """
    try:
        return FitSettings(**dataclasses.asdict(config.fit))
    except ValueError as error:
        raise IdcError(f"fit.{error}") from None


Search = Callable[..., Schedule]


def configured_search(config: Config) -> Search:
    """The configured strategy, bound to its parameters: see the returned function.

    Raises:
        IdcError: no such strategy, parameters that it does not take, or something that it asks for and that this task
            cannot give, or a sampler that it cannot serve.
    """
    name = config.timesteps["name"]
    strategy = registry.load("timesteps", name, "timesteps")
    parameters = {key: value for key, value in config.timesteps.items() if key != "name"}
    registry.bind(strategy.timesteps, parameters, "timesteps")
    needs = tuple(getattr(strategy, "NEEDS", ()))
    _check_needs(needs, f"timesteps={name}", config.task.name)
    sampler = registry.load("sampler", config.sampler, "sampler")
    if hasattr(strategy, "check_sampler"):
        strategy.check_sampler(sampler, config.sampler)
    if translate.wants_coefficients(config.sampler):
        fit_settings(config)
        _check_needs(("teacher",), f"sampler={config.sampler}", config.task.name)

    def search(process: Process, num_inference_steps: int, **sources: Any) -> Schedule:
        """The strategy's answer for so many steps; of the sources it gets those that it asks for."""
        asked = {need: sources[need] for need in needs if need in sources}
        request = ScheduleRequest(num_inference_steps, process, sampler=sampler.SAMPLER, seed=config.seed, **asked)
        schedule: Schedule = strategy.timesteps(request, **parameters)
        return agreed(lambda: schedule, "the list that was found")

    return search


def check_process(config: Config, process: Process) -> None:
    """Refuse a loaded model, before it is sampled, whose process the configured strategy says it cannot serve.

    Raises:
        IdcError: see the strategy's own `check_process`, if it has one.
    """
    strategy = registry.load("timesteps", config.timesteps["name"], "timesteps")
    if hasattr(strategy, "check_process"):
        strategy.check_process(process)


def wants_run(config: Config) -> bool:
    """Whether the search looks at the states of the many-step run, for its lists or for the sampler's numbers."""
    strategy = registry.load("timesteps", config.timesteps["name"], "timesteps")
    needs = {"teacher", "denoiser"}.intersection(getattr(strategy, "NEEDS", ()))
    return bool(needs) or translate.wants_coefficients(config.sampler)


def _check_needs(needs: Sequence[str], key: str, task: str) -> None:
    """Refuse what asks for something that the task cannot give.

    Args:
        needs: of a strategy, a sampler or a prune method.
        key: how it was chosen, for the error.

    Raises:
        IdcError: the task cannot give one of them.
    """
    cannot = registry.load("task", task, "task").Task.cannot_give
    for need in needs:
        if need in cannot:
            raise IdcError(f"{key} asks for a {need}, which task={task} cannot give; choose another")
