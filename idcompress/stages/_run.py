"""Before a stage runs: its configuration, its recipes, its folder; after it: what it leaves there."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .. import __version__, console, registry
from .. import config as configuration
from ..config import Config
from ..console import say
from ..errors import IdcError
from ..runs import files, ranks, timing
from ..runs.places import is_main_process, place_by_slurm, places_as_they_were
from ..runs.recipe import Recipe
from ..runs.run_dir import OUTPUTS, RunDir, environment, latest_recipes, open_run, recipes_of
from ._ready import made_ready

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Stages whose results are not in their run folder alone: a sweep repeats them even where they are finished.
WRITE_ELSEWHERE = ("convert", "export", "report")


@dataclass
class Run:
    """A stage about to run.

    Attributes:
        recipe_argument: value of `recipe=` that names what was resolved, for child processes.
    """

    config: Config
    recipes: list[Recipe]
    run_dir: RunDir
    recipe_argument: str

    def finish(self, made: list[Recipe], seconds: timing.Record) -> None:
        """Leave what a stage has made, and mark the run as complete."""
        if not is_main_process():
            return
        if made:
            save_recipes(made, self.run_dir)
        timing.save(seconds, self.run_dir.path)
        self.run_dir.finish()
        sampled = ""
        if seconds.image_steps:
            outside = timing.outside_networks(seconds)
            sampled = f" ({seconds.image_steps:,} steps of images, {outside:.0%} of the time outside the networks)"
        say(f"done: {show(self.run_dir.path)}{sampled}")


def start(stage: str, composed: DictConfig, hydra_config: Any) -> Run:
    """Check the configuration, resolve the recipe and open the run folder.

    Raises:
        IdcError: the configuration or the recipe is wrong; nothing has been written yet.
    """
    console.start_logging(None, quiet=not is_main_process())
    config = configuration.to_config(composed)
    configuration.check_choices(config, hydra_config.runtime.choices)
    place_by_slurm(processes_of(config))
    registry.check("task", config.task.name, "task")
    registry.check("prune", config.prune["name"], "prune")
    registry.check("timesteps", config.timesteps["name"], "timesteps")
    registry.check("sampler", config.sampler, "sampler")
    registry.check("data", config.data.name, "data")
    registry.check("metric", config.tsopt.metric, "tsopt.metric")
    registry.check("metric", config.plan.metric, "plan.metric")
    for sampler in config.plan.samplers:
        registry.check("sampler", sampler, "plan.samplers")
    for metric in config.evaluate.metrics:
        registry.check("metric", metric.removesuffix("?"), "evaluate.metrics")
    set_threads(config.threads, config.devices)
    paths = recipe_paths(stage, config)
    recipes = [Recipe.load(path) for path in paths]
    if not recipes and stage != "convert":
        recipes = [full_recipe(config, needs_weights=stage != "profile")]
    if recipes:
        config = follow_recipe(config, recipes[0], list(hydra_config.overrides.task))
    if recipes and stage != "report":
        say(describe(config, recipes, paths, stage))
    ready = made_ready(stage, config, recipes[0]) if recipes else config
    changed, config = ready != config, ready
    identity = {
        "stage": stage,
        "version": __version__.rpartition(".")[0],
        "config": configuration.identity(composed),
        "recipes": [recipe.digest for recipe in recipes],
        **({"thresholds": config.depth_search.thresholds} if changed else {}),
    }
    chosen = explicit(hydra_config)
    keep = is_of_sweep(hydra_config) and stage not in WRITE_ELSEWHERE and config.output.path is None
    label = model_label(config)
    run_dir = open_run(stage, config.task.name, label, files.digest(identity), chosen, keep_finished=keep)
    if not is_main_process():
        return Run(config, recipes, run_dir, config.recipe)
    if run_dir.finished:
        say(f"finished before: {show(run_dir.path)}")
        return Run(config, recipes, run_dir, config.recipe)
    if run_dir.resumed:
        say(f"continuing the interrupted run {show(run_dir.path)}")
    files.write_text(run_dir / "config.yaml", configuration.to_yaml(composed))
    files.write_json(run_dir / "environment.json", environment())
    console.start_logging(run_dir / "log.txt")
    several = len(paths) > 1  # a folder of steps_*/recipe.json
    resolved = str((paths[0].parents[1] if several else paths[0]).resolve()) if paths else "none"
    return Run(config, recipes, run_dir, resolved)


@contextmanager
def in_processes(
    stage: ModuleType, config: Config, recipes: list[Recipe], run_dir: RunDir
) -> Iterator[tuple[Config, list[Recipe]]]:
    """Several processes to run a stage in, where devices=N or num_nodes=N ask for them and it shares its work.

    Yields:
        the configuration and the recipes to run it with.

    Raises:
        IdcError: there are not so many devices, or a process died.
    """
    if processes_of(config) == 1 or not getattr(stage, "SHARED", False):
        with places_as_they_were():
            yield config, recipes
        return
    with timing.part("start"):
        from ..adapters import devices  # which loads torch

    try:
        with devices.together(config.device, config.devices, config.num_nodes) as group, ranks.joined(group):
            timing.spread(group.size)
            if not is_main_process():
                console.silence()
            try:
                config, recipes, run_dir.info = ranks.agreed(lambda: (config, recipes, run_dir.info), "what is run")
                yield dataclasses.replace(config, device=group.device), recipes
            except BaseException as error:
                ranks.end(error)
                raise
            ranks.end(None)
    except Exception as error:
        if not is_main_process() and (isinstance(error, IdcError) or ranks.is_of_another(error)):
            sys.exit(1)  # the first process says it
        raise


def processes_of(config: Config) -> int:
    """How many processes share the work of a search or an evaluation."""
    return config.devices * config.num_nodes


def is_of_sweep(hydra_config: Any) -> bool:
    """Whether Hydra's configuration of a job is that of a sweep's."""
    return getattr(hydra_config.mode, "name", None) == "MULTIRUN"


def explicit(hydra_config: Any) -> Path | None:
    """The folder that the user chose by hydra.run.dir or hydra.sweep.*, None for ours."""
    chosen = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
    if any(override.lstrip("+").startswith(chosen) for override in hydra_config.overrides.hydra):
        return Path(str(hydra_config.runtime.output_dir))
    return None


# What a part of a run does (runs/timing.py), in an error's words.
_DOING = {
    "load": "loading the model",
    "encode": "encoding pictures and prompts",
    "denoise": "sampling",
    "decode": "decoding pictures",
    "measure": "computing metrics",
    "train": "training",
}


def out_of_memory(error: BaseException, command: str, config: Config) -> IdcError:
    """One line for memory that is full: what was being done, how much was wanted, and the keys that make it less."""
    part = timing.part_of(error)
    wanted = re.search(r"tried to allocate ([\d.,]+ ?\w+)", str(error), re.IGNORECASE)
    amount = f", {wanted[1]} more wanted" if wanted else ""
    keys = f"batch_size={config.batch_size}, dtype={config.dtype} (float16 and bfloat16 take half of float32)"
    if part == "train":
        accumulated = config.trainer.get("accumulate_grad_batches", 1)
        keys = (
            f"finetune.batch_size={config.finetune.batch_size}, raise trainer.accumulate_grad_batches={accumulated}, "
            "set finetune.gradient_checkpointing=true, finetune.ema_decay=null or a lower finetune.resolution; of the "
            f"validations {keys}"
        )
    return IdcError(
        f"memory is full (device={config.device}{amount}) while {_DOING.get(part, 'working')} in idc {command}; lower "
        f"{keys}; the same command continues what it had begun"
    )


def model_label(config: Config) -> str:
    """The model's part of a run folder's path; folders of one name at two places stay apart."""
    if config.model.path is None:
        return config.model.name
    path = Path(config.model.path).resolve()
    return f"{path.name}-{files.digest(str(path))[:6]}"


def recipe_paths(stage: str, config: Config) -> list[Path]:
    """The recipe files that `recipe=` stands for; empty for the full model."""
    if config.recipe == "none" or stage == "convert":
        return []
    if config.recipe == "latest":
        return latest_recipes(stage, config.task.name, model_label(config))
    path = Path(config.recipe)
    if path.is_dir():
        found = recipes_of(path)
        if not found:
            raise IdcError(f"recipe={config.recipe}: the folder holds no recipe.json")
        return found
    if not path.is_file():
        raise IdcError(f"recipe={config.recipe}: no such file; want latest, none or a recipe.json")
    return [path]


def full_recipe(config: Config, *, needs_weights: bool = True) -> Recipe:
    """The recipe of an uncompressed model. An exported folder has its own, with timesteps and guidance."""
    model = config.model
    exported = None if model.path is None else Recipe.of_folder(model.path)
    if exported is not None:
        if exported.task != config.task.name:
            raise IdcError(f"model.path={model.path} was exported for task={exported.task}, not {config.task.name}")
        return dataclasses.replace(exported, model={**exported.model, "path": model.path}, folder=None)
    repositories = None
    if model.path is None and model.repositories:
        repositories = model.repositories.get(config.task.name)
        if repositories is None and needs_weights:
            advice = registry.load("task", config.task.name, "task").Task.getting_weights
            raise IdcError(f"model={model.name} has no weights for task={config.task.name}; {advice}")
    source = {
        "name": model.name,
        "path": model.path,
        "repositories": repositories,
        "revision": model.revision if repositories else None,
    }
    return Recipe(task=config.task.name, model=source)


def follow_recipe(config: Config, recipe: Recipe, overrides: Sequence[str]) -> Config:
    """Guidance scales and sampler default to those that the recipe was searched with; the command line wins."""
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    searched: dict[str, Any] = recipe.guidance | ({"sampler": recipe.sampler} if recipe.sampler else {})
    return dataclasses.replace(config, **{name: value for name, value in searched.items() if name not in given})


def describe(config: Config, recipes: list[Recipe], paths: list[Path], stage: str) -> str:
    """The first line of a run: what it starts from."""
    if paths:
        names = ", ".join(show(path) for path in paths)
        steps = "/".join(str(recipe.num_inference_steps) for recipe in recipes)
        return f"recipe: {names} (made by {recipes[0].stage or 'hand'}: {recipes[0].kept}, {steps} steps)"
    if recipes[0].stage == "export":
        return f"model: {config.model.path}, exported, {recipes[0].num_inference_steps} steps"
    why = ""
    if config.recipe == "latest" and stage not in ("depth_search", "compress"):
        why = f" (no finished recipe under {show(OUTPUTS / config.task.name / model_label(config))})"
    return f"recipe: none, the full model{why}"


def save_recipes(recipes: list[Recipe], run_dir: RunDir) -> None:
    """recipe.json, or one folder per step count where there are several."""
    if len(recipes) == 1:
        recipes[0].save(run_dir / "recipe.json")
        return
    names = folder_names(recipes)
    for name, recipe in zip(names, recipes, strict=True):
        recipe.save(run_dir.path / name / "recipe.json")
    run_dir.info["recipes"] = names


def folder_names(recipes: Sequence[Recipe]) -> list[str]:
    """A folder for each of several recipes, by its steps; of recipes of as many steps the later ones are numbered."""
    counts = [recipe.num_inference_steps for recipe in recipes]
    return [
        f"steps_{count}" + (f"_{1 + counts[:place].count(count)}" if count in counts[:place] else "")
        for place, count in enumerate(counts)
    ]


def show(path: Path) -> str:
    """A path as the user would type it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def set_threads(threads: int, processes: int = 1) -> None:
    """Set torch's threads before torch is imported.

    0 takes OMP_NUM_THREADS if that is set, else the cores that this process may use less those that others keep busy,
    shared among the processes of a distributed run: with more threads than free cores torch is many times slower.

    Args:
        processes: that this one will start, itself included, where they have not been counted by WORLD_SIZE.
    """
    if threads < 0:
        raise IdcError(f"threads must be 0 (choose) or more, got {threads}")
    if threads == 0:
        if os.environ.get("OMP_NUM_THREADS", "").isdigit():
            return
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        busy = round(os.getloadavg()[0]) if hasattr(os, "getloadavg") else 0
        threads = max(1, (cores - busy) // max(processes, int(os.environ.get("WORLD_SIZE", "1"))))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def with_depth(recipe: Recipe, config: Config) -> Recipe:
    """The recipe with the cut that the command line fixes (depth=9, prune=bk_sdm), if it does.

    Raises:
        IdcError: the recipe holds weights of another cut, or its method knows no depths.
    """
    if config.depth is None:
        return _with_given(recipe, config)
    if config.depth == recipe.depth:
        return recipe
    if recipe.weights:
        raise IdcError(f"depth={config.depth}: the recipe's weights were fine-tuned at depth {recipe.depth}; drop one")
    method = str(config.prune["name"]) if recipe.cut is None else recipe.cut.method
    entry = registry.load("prune", method, "prune.name")
    if not hasattr(entry, "chosen"):
        raise IdcError(f"depth={config.depth}: prune={method} has no depths; use prune=depth_skip or drop depth=")
    own = {name: value for name, value in config.prune.items() if name != "name"} if recipe.cut is None else {}
    cut = entry.chosen(config.depth, **registry.bind(entry.candidates, own, "prune"))
    check_calibrated(entry, method, cut)
    return dataclasses.replace(recipe, cut=cut)


def check_calibrated(entry: Any, method: str, cut: Any) -> None:
    """Raise IdcError where a cut wants weights that only the depth search computes."""
    if hasattr(entry, "is_calibrated") and entry.is_calibrated(cut):
        raise IdcError(
            f"prune={method}: this cut has weights that the depth search computes on photographs; run idc depth-search "
            "with the same keys first, and go on from its recipe"
        )


def _with_given(recipe: Recipe, config: Config) -> Recipe:
    """The recipe with the cut that the parameters of the prune method name, where it is one that searches nothing."""
    method = str(config.prune["name"])
    entry = registry.load("prune", method, "prune.name")
    if getattr(entry, "SEARCHES", True):
        return recipe
    if not hasattr(entry, "given"):
        if recipe.cut is not None and recipe.cut.method == method:
            return recipe
        raise IdcError(f"prune={method}: the cut is made by idc depth-search; run it first, and go on from its recipe")
    own = {name: value for name, value in config.prune.items() if name != "name"}
    cut = entry.given(**registry.bind(entry.candidates, own, "prune"))
    if cut == recipe.cut:
        return recipe
    if recipe.weights:
        raise IdcError(f"prune={method}: the recipe's weights belong to another cut ({recipe.kept}); drop one")
    return dataclasses.replace(recipe, cut=cut)


def provenance(
    stage: str, config: Config, run_dir: RunDir, photographs: dict[str, str], **details: Any
) -> dict[str, Any]:
    """A recipe's entry about the stage that made it. It holds no times, so that the same run gives the same recipe."""
    return {
        "stage": stage,
        "config_digest": run_dir.info["digest"],
        "seed": config.seed,
        "options": config.task.options,
        "sampler": config.sampler,
        "code": code_state(),
        "photographs": photographs,
        **({} if config.resolution_px is None else {"resolution_px": config.resolution_px}),
        **details,
    }


def code_state() -> str:
    """Version, and the commit if this is a checkout."""
    package = Path(__file__).resolve().parents[1]
    try:
        found = subprocess.run(
            ["git", "-C", str(package), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    inside = (package.parent / ".git").exists() and found.returncode == 0
    return f"{__version__}+{found.stdout.strip()}" if inside else __version__
