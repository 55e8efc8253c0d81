"""Run the whole chain: depth search, fine-tuning, timestep search, evaluation, report"""

from __future__ import annotations

import dataclasses

from .. import registry
from ..config import Config
from ..console import say
from ..errors import IdcError
from ..runs import files, timing
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir, is_main_process, recipes_of
from ._run import save_recipes


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Run the stages of compress.stages one after the other, each in its own folder of this run.

    A stage that an interrupted run had finished is not run again. With compare=NAME a comparison comes last.

    Raises:
        IdcError: an unknown stage, or compress itself.
    """
    known = [name for name in registry.names("command") if name != "compress"]
    stages = [*config.compress.stages]
    if config.compare["name"] != "none" and "compare" not in stages:
        stages.append("compare")
    for name in stages:
        if name not in known:
            raise IdcError(f"compress.stages: no stage is called {name!r}; there are: {', '.join(known)}")
    if "compare" in stages:
        registry.load("command", "compare").check(config)
    for name in stages:
        if name == "finetune" and recipes[0].cut is None:
            say("== finetune: left out, because nothing is cut and there is nothing to recover")
            continue
        stage_run = run_dir.child(name, files.digest([run_dir.info["digest"], name]))
        if not stage_run.finished:
            say(f"== {name.replace('_', '-')}")
            stage = registry.load("command", name)
            with timing.part(name), timing.record() as seconds:
                made = stage.run(_stage_config(name, config, recipes[0]), recipes, stage_run)
            if not is_main_process():
                return []  # this process was started by the fine-tuning for itself, and has nothing more to do
            if made:
                save_recipes(made, stage_run)
            timing.save(seconds, stage_run.path)
            stage_run.finish()
        recipes = [Recipe.load(path) for path in recipes_of(stage_run.path)] or recipes
    return recipes


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
