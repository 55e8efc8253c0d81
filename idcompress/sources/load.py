"""From a model's name, a recipe or a folder to a loaded pipeline."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from .. import registry
from ..adapters.fold import fold_pipeline
from ..adapters.pipeline import check_resolution, choose_device, choose_dtype, fixed_scheduler, own_pipeline
from ..console import say
from ..core.plan import Plan
from ..errors import IdcError, is_out_of_memory
from ..runs import files
from ..runs.recipe import Recipe
from . import folders, hub
from .components import check_fits, left_out, load_component, load_components
from .model import Model

_loaded: dict[str, Model] = {}


def load_source(
    task: str,
    source: dict[str, Any],
    *,
    device: str = "auto",
    dtype: str = "auto",
    prune: str = "depth_skip",
    parameters: Mapping[str, Any] | None = None,
) -> Model:
    """Load what a recipe's `model` field names.

    Args:
        source: {"name", "path", "repositories", "revision", "digest"}; where several places are given the path wins.
        device: "auto" takes CUDA, then MPS, then the CPU.
        dtype: "auto" is float16 on CUDA and float32 elsewhere.
        prune, parameters: the method that cuts it, and its configured parameters.

    Raises:
        IdcError: nothing there, an incomplete folder, an unreachable hub, a pipeline of another kind, other weights
            than the digest's, a device that is not there.
    """
    entry = registry.load("task", task, "task").Task
    places = model_folders(task, source)
    where = choose_device(device)
    pipeline = _load_folders(entry, places, choose_dtype(dtype, where))
    digest = folders.folder_digest(list(places.values()))
    inside = {name: places["pipeline"] / name for name in pipeline.components if name not in places}
    pipeline = pipeline.to(where)
    if where.startswith("cuda"):  # whose convolutions read their channels last
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                component.to(memory_format=torch.channels_last)
    model = Model(pipeline, {**source, "digest": digest}, prune, parameters or {}, inside | places)
    check_digest(task, source, model)
    return model


def shared_model(task: str, source: dict[str, Any], **settings: Any) -> Model:
    """As `load_source`, but if the model that was loaded last is the same one, it is returned again.

    This is how the stages of one run share a model.
    """
    place = {name: value for name, value in source.items() if name != "digest"}
    key = files.digest([task, place, settings])
    if key not in _loaded:
        say(f"loading {source.get('path') or source['name']} for {task}")
        if source["name"] != "tiny" and _would_be_faster_in_bfloat16(**settings):
            say("  this CPU multiplies bfloat16 several times as fast as float32 (AMX): dtype=bfloat16")
        _loaded.clear()
        _loaded[key] = load_source(task, source, **settings)
    check_digest(task, source, _loaded[key])
    return _loaded[key]


def _would_be_faster_in_bfloat16(*, device: str = "auto", dtype: str = "auto", **_: Any) -> bool:
    """Whether float32 was not asked for, and the CPU that it would run on has matrix units; Linux alone says so."""
    file = Path("/proc/cpuinfo")
    has_units = file.is_file() and " amx_bf16" in file.read_text()
    return has_units and dtype == "auto" and choose_device(device) == "cpu"


def check_digest(task: str, source: dict[str, Any], model: Model) -> None:
    """Raise IdcError unless a loaded model is the one that a recipe's `model` field names."""
    if source.get("digest") in (None, model.digest):
        return
    if source["digest"] != folders.former_folder_digest(list(model_folders(task, source).values())):
        raise IdcError(
            f"the weights of model {source['name']} are not those that the recipe was made for; "
            "an exported folder is used by model.path=FOLDER, not by the recipe in it"
        )


def forget_shared_model() -> None:
    """Let go of the model that `shared_model` would return again, because its networks are changed or in the way."""
    _loaded.clear()


def check_source(task: str, source: dict[str, Any], resolution_px: int | None = None) -> None:
    """Look for what `load_source` would load; nothing is loaded, and nothing fetched.

    Args:
        resolution_px: side of the images that it will work on, if it is known.

    Raises:
        IdcError: nothing there, an incomplete folder, a pipeline of another kind, an unreachable hub, an autoencoder
            that does not take such images.
    """
    entry = registry.load("task", task, "task").Task
    if source.get("path") is None and source.get("repositories"):
        for repository in source["repositories"].values():
            hub.check(repository, source.get("revision") or "main")
        return
    for folder in model_folders(task, source).values():
        _check_kind(folders.check_folder(folder), folder, entry)
        levels = files.read_json(folder / "vae" / "config.json", "model").get("block_out_channels")
        if resolution_px is not None and isinstance(levels, list):
            check_resolution(resolution_px, 2 ** (len(levels) - 1))


def _check_kind(index: dict[str, Any], folder: Path, task: Any) -> None:
    found = folders.class_name_of(index)
    if found not in (task.pipeline_class, task.own_pipeline_class):
        raise IdcError(f"{folder} is a {found}; this task wants a {task.pipeline_class}")


def model_folders(task: str, source: dict[str, Any]) -> dict[str, Path]:
    """Where a recipe's `model` lies: {"pipeline": its folder, and any component that comes from elsewhere}."""
    name, revision = source["name"], source.get("revision")
    if source.get("path") is not None:
        return {"pipeline": Path(source["path"])}
    if source.get("repositories"):
        return {k: hub.resolve(v, revision or "main") for k, v in source["repositories"].items()}
    if name != "tiny":
        advice = registry.load("task", task, "task").Task.getting_weights
        raise IdcError(f"model={name} has no weights for task={task}; {advice}")
    from ..models.tiny import tiny_folder

    try:
        return {"pipeline": tiny_folder(task)}
    except LookupError as error:
        raise IdcError(str(error)) from None


def _load_folders(task: Any, places: dict[str, Path], dtype: torch.dtype) -> Any:
    """Load a pipeline, in eval mode and without gradients.

    Args:
        task: class of the task, which names the classes of pipeline and components.
        places: {"pipeline": a pipeline folder, and components that come from elsewhere}.

    Raises:
        IdcError: a component that the task does not know, a pipeline of another kind, or one that does not load.
    """
    folder, pipeline_class = places["pipeline"], task.pipeline_class
    index = folders.check_folder(folder)
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    components: dict[str, Any] = {}
    for name, component_folder in places.items():
        if name != "pipeline":
            if name not in task.separate_components:
                known = ", ".join(["pipeline", *task.separate_components])
                raise IdcError(f"model.repositories: task={task.name} takes {known} from there, got {name}")
            components[name] = load_component(component_folder, "diffusers", task.separate_components[name], dtype)
    if not components:
        _check_kind(index, folder, task)
    components |= load_components(task, index, folder, dtype, given=components)
    check_fits(task, components, folder)
    try:
        entry = getattr(importlib.import_module(task.pipeline_library), pipeline_class)
        if isinstance(index["_class_name"], list):  # diffusers would run the folder's code, and all parts are here
            pipeline = entry(**components, **left_out(task))
        else:
            pipeline = entry.from_pretrained(folder, dtype=dtype, use_safetensors=True, **components, **left_out(task))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise IdcError(f"{folder} does not load as a {pipeline_class}: {error}") from None
    pipeline = task.runnable(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    return pipeline


def load_pipeline(
    path_or_recipe: str | Path | Recipe, *, device: str = "auto", dtype: str = "auto", fold: bool = False
) -> Any:
    """A diffusers pipeline from a recipe, a run folder with one, or a diffusers folder, exported ones included.

    The U-Net is cut to the recipe's depth and the scheduler follows its timesteps, so the pipeline is called as ever:
    its `num_inference_steps` is overruled by the list, and eta 0 by the recipe's ancestral sampling. `save_pretrained`
    writes a folder that loads here again. Where the recipe's plan leaves levels, guidance passes or side networks out
    of some steps, the pipeline follows it, too: `pipeline.computed` has the steps, and `disable()` and `enable()` let
    it compute everything and follow the plan again. What saves such a pipeline is `idc export`.

    Args:
        path_or_recipe: a Recipe, a recipe.json, a folder that holds one, or a diffusers pipeline folder.
        device, dtype: "auto", or as in the configuration.
        fold: compute constants once and drop the weights behind them (a message says how many): zeros at the cut, the
            listed timesteps, a fixed prompt. Results stay the same but for rounding; other timesteps give NaN, and the
            pipeline cannot be saved.

    Raises:
        IdcError: nothing there, or a damaged or changed file, named.
    """
    pipeline = _load(path_or_recipe, device, dtype)
    if fold:
        if hasattr(pipeline, "computed"):
            raise IdcError("fold=True wants a plan whose steps all compute the same, and this recipe's do not")
        for what, saved in fold_pipeline(pipeline).items():
            print(f"folded: {what}, {saved:,} parameters less")
    return pipeline


def _load(path_or_recipe: str | Path | Recipe, device: str, dtype: str) -> Any:
    if not isinstance(path_or_recipe, Recipe):
        path = Path(path_or_recipe)
        if (path / "model_index.json").is_file() or Recipe.of_folder(path) is not None:
            return _load_folder(path, device, dtype)
        path_or_recipe = Recipe.load(path)
    recipe = path_or_recipe
    model = load_source(recipe.task, recipe.model, device=device, dtype=dtype)
    if recipe.plan is not None and recipe.plan.coefficients is not None:
        recipe.check_fit(recipe.plan, model.process.to_json())
    return _by_plan(recipe.task, model.for_recipe(recipe), None if recipe.free_steps else recipe.plan)


def _by_plan(task: str, pipeline: Any, plan: Plan | None) -> Any:
    """A cut pipeline that follows a plan, if there is one."""
    if plan is None or plan.is_plain:
        return own_pipeline(pipeline, plan)
    return registry.load("task", task).Task.following(pipeline, plan, fixed_scheduler(pipeline, plan.all_whole))


def _load_folder(folder: Path, device: str, dtype: str) -> Any:
    pipeline_class, exported = folders.class_name_of(folders.check_folder(folder)), Recipe.of_folder(folder)
    for task in registry.names("task"):
        entry = registry.load("task", task).Task
        if pipeline_class in (entry.pipeline_class, entry.own_pipeline_class):
            source = {"name": folder.name, "path": str(folder)}
            pipeline = load_source(task, source, device=device, dtype=dtype, prune="none").pipeline
            if exported is not None and exported.plan is not None and not exported.plan.is_plain:
                return _by_plan(task, pipeline, exported.plan)
            timesteps = pipeline.scheduler.config.get("timesteps")
            if timesteps is None:
                return own_pipeline(pipeline, None)
            sampler = "ddim" if exported is None or exported.sampler is None else exported.sampler
            plan = Plan.over(timesteps, sampler=sampler)
            rows = pipeline.scheduler.config.get("coefficients")
            numbers = None if rows is None else tuple(map(tuple, rows))
            return own_pipeline(pipeline, replace(plan, coefficients=numbers))
    raise IdcError(f"{folder} is a {pipeline_class}, which no task of idcompress uses")
