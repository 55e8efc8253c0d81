"""Run the whole chain: depth search, fine-tuning, timestep search, evaluation, report"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from .. import registry
from ..bench.comparison import affordable_steps
from ..bench.costs import called_steps, gmacs_of_a_step
from ..bench.translate import wants_coefficients
from ..config import Config
from ..console import say
from ..errors import IdcError
from ..runs import files, timing
from ..runs.places import is_main_process, started_by_a_cluster
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir, recipes_of
from ..sources.load import shared_model
from ._run import in_processes, processes_of, save_recipes
from ._values import loading_settings, make_task


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Run the stages of compress.stages one after the other, each in its own folder of this run.

    A stage that an interrupted run had finished is not run again. With compare=NAME a comparison comes last.

    Raises:
        IdcError: see the stages.
    """
    stages = [*config.compress.stages]
    if config.compare["name"] != "none" and "compare" not in stages:
        stages.append("compare")
    if "compare" in stages:
        registry.load("command", "compare").check(config)
    if processes_of(config) > 1 and started_by_a_cluster():
        raise IdcError(
            "compress starts processes for each of its stages, and here torchrun or srun has started them already; "
            "start compress once, or its stages one by one"
        )
    config = _with_numbers(config, stages, recipes[0])
    beside: dict[str, list[Recipe]] = {}
    for name in stages:
        if name == "finetune" and recipes[0].cut is None:
            say("== finetune: left out, because nothing is cut and there is nothing to recover")
            continue
        if name == "tsopt" and "evaluate" in stages and _leaves_the_paper(config):
            own = dataclasses.replace(config, timesteps={"name": "gamma"}, sampler="ddim")
            say("the paper's recipe, to compare with")
            beside = {"paper": _stage("tsopt", own, recipes, run_dir, "paper")}
        if name == "evaluate" and "tsopt" in stages and _sets_the_whole_beside(config, recipes[0]):
            beside["uncut"] = _uncut(config, recipes, run_dir)
        more: dict[str, Any] = {"beside": beside} if name == "evaluate" and beside else {}
        recipes = _stage(name, config, recipes, run_dir, **more) or recipes
    return recipes


def _uncut(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Recipes of the whole model for as much work as those of the cut one, searched the same way."""
    say("the whole model at as many multiply-accumulates, to compare with")
    search = dataclasses.replace(config.tsopt, num_inference_steps=_affordable(config, recipes), reference="self")
    own = dataclasses.replace(config, depth=None, tsopt=search)
    whole = Recipe(task=recipes[0].task, model=recipes[0].model)
    return _stage("tsopt", own, [whole], run_dir, "uncut")


def _affordable(config: Config, recipes: list[Recipe]) -> list[int]:
    """Steps of the whole model that each recipe's work pays for, the most first."""
    recipe, task = recipes[0], make_task(config, recipes[0].task)
    model = shared_model(recipe.task, recipe.model, **loading_settings(config, recipe))
    whole, cut = (
        gmacs_of_a_step(task, pipeline, config.resolution_px) for pipeline in (model.pipeline, model.for_recipe(recipe))
    )
    counts = {affordable_steps(len(called_steps(r.plan)), cut, whole) for r in recipes if r.plan is not None}
    return sorted(counts, reverse=True)


def _stage(
    name: str, config: Config, recipes: list[Recipe], run_dir: RunDir, folder: str | None = None, **more: Any
) -> list[Recipe]:
    """Run a stage in a folder of its own, unless that was finished before; the recipes that it made."""
    stage_run = run_dir.child(folder or name, files.digest([run_dir.info["digest"], folder or name]))
    if not stage_run.finished:
        say(f"== {name.replace('_', '-')}")
        stage, own = registry.load("command", name), _stage_config(name, config, recipes[0])
        with (
            timing.part(folder or name),
            timing.record() as seconds,
            in_processes(stage, own, recipes, stage_run) as (own, given),
        ):
            made = stage.run(own, given, stage_run, **more)
        if not is_main_process():
            sys.exit()  # this process was started by the stage for itself, and has nothing more to do
        if made:
            save_recipes(made, stage_run)
        timing.save(seconds, stage_run.path)
        stage_run.finish()
    return [Recipe.load(path) for path in recipes_of(stage_run.path)]


def _with_numbers(config: Config, stages: list[str], recipe: Recipe) -> Config:
    """The configuration with a sampler that has its numbers: no stage fits any without a timestep search."""
    fitted = recipe.plan is not None and recipe.plan.coefficients is not None
    if "tsopt" in stages or fitted or not wants_coefficients(config.sampler):
        return config
    say(f"sampler=ddim: no stage here fits the numbers of sampler={config.sampler}; tsopt would")
    return dataclasses.replace(config, sampler="ddim")


def _leaves_the_paper(config: Config) -> bool:
    """Whether the paper's own list would be another than the one that is searched, and can be compared with it."""
    stochastic = registry.load("sampler", config.sampler).SAMPLER.STOCHASTIC
    papers = config.timesteps["name"] == "gamma" and config.sampler == "ddim"
    return config.compress.paper and config.evaluate.alternatives and not papers and not stochastic


def _sets_the_whole_beside(config: Config, recipe: Recipe) -> bool:
    """Whether something is cut, and what the whole model gives for as much work is wanted."""
    return config.compress.uncut and config.evaluate.alternatives and recipe.cut is not None


def _stage_config(name: str, config: Config, recipe: Recipe) -> Config:
    """The configuration of one stage. depth= goes to the depth search alone; the others take the recipe's depth.

    Fine-tuning cuts compress.fewer_levels more than a search kept: the deeper cut failed untrained, and may hold once
    it is trained. A cut with weights of its own is trained as it is.
    """
    if name == "depth_search":
        return config
    depth = None
    searched = recipe.stage == "depth_search" and config.depth is None and not recipe.weights
    if name == "finetune" and searched and recipe.depth is not None:
        depth = max(config.depth_search.min_depth, recipe.depth - config.compress.fewer_levels)
    keep = "best" if config.finetune.keep == "auto" else config.finetune.keep
    return dataclasses.replace(config, depth=depth, finetune=dataclasses.replace(config.finetune, keep=keep))
