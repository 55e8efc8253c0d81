"""Run the whole chain: depth search, timestep search, evaluation, report"""

from __future__ import annotations

import dataclasses

from .. import registry
from ..artifacts import files, timing
from ..artifacts.recipe import Recipe
from ..artifacts.run_dir import RunDir, is_main_process, recipes_of
from ..config import Config
from ..console import say
from ..errors import IdcError
from ._run import save_recipes


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Run the stages of compress.stages one after the other, each in its own folder of this run.

    A stage that an interrupted run had finished is not run again.

    Raises:
        IdcError: an unknown stage, or compress itself.
    """
    known = [name for name in registry.names("command") if name != "compress"]
    for name in config.compress.stages:
        if name not in known:
            raise IdcError(f"compress.stages: no stage is called {name!r}; there are: {', '.join(known)}")
    # depth= fixes the depth for the depth search; later stages take it from the recipe.
    later = dataclasses.replace(config, depth=None)
    for name in config.compress.stages:
        stage_run = run_dir.child(name, files.digest([run_dir.info["digest"], name]))
        if not stage_run.finished:
            say(f"== {name.replace('_', '-')}")
            stage = registry.load("command", name)
            with timing.part(name), timing.record() as seconds:
                made = stage.run(config if name == "depth_search" else later, recipes, stage_run)
            if not is_main_process():
                return []  # a further process of the fine-tuning, which was started for it alone
            if made:
                save_recipes(made, stage_run)
            timing.save(seconds, stage_run.path)
            stage_run.finish()
        recipes = [Recipe.load(path) for path in recipes_of(stage_run.path)] or recipes
    return recipes
