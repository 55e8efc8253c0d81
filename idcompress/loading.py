"""From a model's name, a recipe or a folder to a loaded pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import registry
from .adapters import hub
from .adapters.export import own_pipeline
from .adapters.fold import fold_pipeline
from .adapters.pipeline import Model, load_model
from .artifacts.recipe import Recipe
from .errors import IdcError


def load_source(task: str, source: dict[str, Any], *, device: str, dtype: str, prune: str) -> Model:
    """Load what a recipe's `model` field names.

    Args:
        source: {"name", "path", "repositories", "revision", "digest"}; where several places are given the path wins.

    Raises:
        IdcError: nothing there, an incomplete folder, an unreachable hub, a pipeline of another kind, other weights
            than the digest's.
    """
    entry = registry.load("task", task, "task").Task
    folders = model_folders(task, source)
    model = load_model(entry.pipeline_class, folders, source, device=device, dtype=dtype, prune=prune)
    check_digest(source, model)
    return model


def check_digest(source: dict[str, Any], model: Model) -> None:
    """Raise IdcError unless a loaded model is the one that a recipe's `model` field names."""
    if source.get("digest") not in (None, model.digest):
        raise IdcError(
            f"the weights of model {source['name']} are not those that the recipe was made for; "
            "an exported folder is used by model.path=FOLDER, not by the recipe in it"
        )


def model_folders(task: str, source: dict[str, Any]) -> dict[str, Path]:
    """Where a recipe's `model` lies: {"pipeline": its folder, and what comes from elsewhere, say "controlnet"}."""
    name, revision = source["name"], source.get("revision")
    if source.get("path") is not None:
        return {"pipeline": Path(source["path"])}
    if source.get("repositories"):
        return {k: hub.resolve(v, revision or "main") for k, v in source["repositories"].items()}
    if name != "tiny":
        advice = registry.load("task", task, "task").Task.getting_weights
        raise IdcError(f"model={name} has no weights for task={task}; {advice}")
    from .models.tiny import tiny_folder

    try:
        return {"pipeline": tiny_folder(task)}
    except LookupError as error:
        raise IdcError(str(error)) from None


def load_pipeline(
    path_or_recipe: str | Path | Recipe, *, device: str = "auto", dtype: str = "auto", fold: bool = False
) -> Any:
    """A diffusers pipeline from a recipe, a run folder with one, or a diffusers folder, exported ones included.

    The U-Net is cut to the recipe's depth and the scheduler follows its timesteps, so the pipeline is called as ever:
    its `num_inference_steps` is overruled by the list, and eta 0 by the recipe's ancestral sampling. `save_pretrained`
    writes a folder that loads here again.

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
    model = load_source(recipe.task, recipe.model, device=device, dtype=dtype, prune=recipe.prune)
    timesteps = None if recipe.timesteps is None else list(recipe.timesteps)
    return own_pipeline(model.for_recipe(recipe), timesteps, recipe.sampler)


def _load_folder(folder: Path, device: str, dtype: str) -> Any:
    pipeline_class, exported = hub.check_folder(folder).get("_class_name"), Recipe.of_folder(folder)
    for task in registry.names("task"):
        if registry.load("task", task).Task.pipeline_class == pipeline_class:
            source = {"name": folder.name, "path": str(folder)}
            pipeline = load_source(task, source, device=device, dtype=dtype, prune="none").pipeline
            timesteps = pipeline.scheduler.config.get("timesteps")
            return own_pipeline(pipeline, timesteps, None if exported is None else exported.sampler)
    raise IdcError(f"{folder} is a {pipeline_class}, which no task of idcompress uses")
