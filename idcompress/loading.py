"""From a model's name, a recipe or a folder to a loaded pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import registry
from .adapters import hub
from .adapters.pipeline import Model, fixed_scheduler, load_model, with_components
from .artifacts.recipe import Recipe
from .errors import IdcError


def load_source(task: str, source: dict[str, Any], *, device: str, dtype: str, prune: str) -> Model:
    """Load what a recipe's `model` field names.

    Args:
        source: {"name", "path", "repositories", "revision"}; where several are given the path wins.

    Raises:
        IdcError: nothing there, an incomplete folder, an unreachable hub, a pipeline of another kind.
    """
    entry = registry.load("task", task, "task").Task
    name, revision = source["name"], source.get("revision")
    if source.get("path") is not None:
        folders = {"pipeline": Path(source["path"])}
    elif source.get("repositories"):
        folders = {k: hub.resolve(v, revision or "main") for k, v in source["repositories"].items()}
    elif name == "tiny":
        from .models.tiny import tiny_folder

        try:
            folders = {"pipeline": tiny_folder(task)}
        except LookupError as error:
            raise IdcError(str(error)) from None
    else:
        raise IdcError(f"model={name} has no weights for task={task}; {entry.getting_weights}")
    return load_model(entry.pipeline_class, folders, source, device=device, dtype=dtype, prune=prune)


def load_pipeline(path_or_recipe: str | Path | Recipe, *, device: str = "auto", dtype: str = "auto") -> Any:
    """A diffusers pipeline from a recipe, a run folder with one, or a diffusers folder.

    The U-Net is cut to the recipe's depth and the scheduler follows its timesteps, so the pipeline is called as ever:
    its `num_inference_steps` is overruled by the list.

    Args:
        path_or_recipe: a Recipe, a recipe.json, a folder that holds one, or a diffusers pipeline folder.
        device, dtype: "auto", or as in the configuration.

    Raises:
        IdcError: nothing there, or a damaged or changed file, named.
    """
    if not isinstance(path_or_recipe, Recipe):
        path = Path(path_or_recipe)
        if path.is_dir() and (path / "model_index.json").is_file():
            return _load_folder(path, device, dtype)
        path_or_recipe = Recipe.load(path)
    recipe = path_or_recipe
    model = load_source(recipe.task, recipe.model, device=device, dtype=dtype, prune=recipe.prune)
    if recipe.model.get("digest") not in (None, model.digest):
        raise IdcError(f"the weights of model {recipe.model['name']} are not those that this recipe was made for")
    pipeline = model.for_recipe(recipe)
    if recipe.timesteps is not None:
        pipeline = with_components(pipeline, {"scheduler": fixed_scheduler(pipeline, list(recipe.timesteps))})
    return pipeline


def _load_folder(folder: Path, device: str, dtype: str) -> Any:
    pipeline_class = hub.check_folder(folder).get("_class_name")
    for task in registry.names("task"):
        if registry.load("task", task).Task.pipeline_class == pipeline_class:
            source = {"name": folder.name, "path": str(folder)}
            return load_source(task, source, device=device, dtype=dtype, prune="none").pipeline
    raise IdcError(f"{folder} is a {pipeline_class}, which no task of idcompress uses")
