"""Export a compressed model as a folder that plain diffusers loads"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..adapters import hub
from ..adapters.export import host_depth, own_pipeline, save_pipeline, stock_obstacle, stock_pipeline
from ..adapters.unet import depth as depth_of
from ..artifacts.recipe import Recipe
from ..artifacts.run_dir import OUTPUTS, RunDir
from ..config import Config
from ..console import say
from ..errors import IdcError
from ..loading import load_source, model_folders
from ..report.card import Card, evaluation_of, licence_of
from ._run import model_label, provenance, show, with_depth

NETWORKS = ("unet", "controlnet", "structure_encoder")


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Write the folder export.path, whole or not at all; the first of several recipes is used. No recipe is made.

    Raises:
        IdcError: the model does not load, or there is something in export.path.
    """
    recipe = with_depth(recipes[0], config)
    if len(recipes) > 1:
        say(f"of {len(recipes)} recipes the one with {recipe.num_inference_steps} steps is used; others by recipe=FILE")
    folder = new_folder(config.export.path)
    model = load_source(recipe.task, recipe.model, device=config.device, dtype=config.dtype, prune=recipe.prune)
    recipe = recipe.derive_model(model.source)
    cut = model.for_recipe(recipe)

    # 1. the form: stock where that is exact, or where the user takes the size of the next depth that has one
    timesteps = None if recipe.timesteps is None else list(recipe.timesteps)
    depth = depth_of(cut.unet)
    obstacle = stock_obstacle(cut.unet, depth)
    host = host_depth(cut.unet) if config.export.host and obstacle else None
    stock = obstacle is None or host is not None
    exported = stock_pipeline(cut, timesteps) if stock else own_pipeline(cut, timesteps)

    # 2. the folder, its recipe with the digest of every file, and its card
    parameters = {
        name: (size(getattr(model.pipeline, name)), size(getattr(exported, name)))
        for name in NETWORKS
        if name in cut.components
    }
    card = Card(
        recipe,
        pipeline_class=type(exported).__name__,
        stock=stock,
        host=host,
        parameters=parameters,
        dtype=str(exported.unet.dtype).removeprefix("torch."),
        licence=licence_of(model_folders(recipe.task, recipe.model)["pipeline"]),
        metrics=evaluation_of(recipe.digest, evaluations(config, recipe, run_dir)),
    )
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # an interrupted export's
    try:
        save_pipeline(exported, partial)
        row = provenance("export", config, run_dir, {}, depth=recipe.depth, host=host, stock=stock)
        row |= {"base": without_path(recipe.model), "files": hub.file_digests(partial)}
        here = {"name": recipe.model["name"], "path": None, "repositories": None, "revision": None}
        here["digest"] = hub.folder_digest([partial])
        recipe.derive(row, model=here, depth=None, weights={}).save(partial / "recipe.json")
        (partial / "README.md").write_text(card.text(), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

    # 3. what the user should know
    for name, (before, after) in parameters.items():
        dead = after - size(getattr(cut, name))
        why = f", {dead:,} of them zero for the stock form's sake" if dead else ""
        say(f"{name}: {after:,} of {before:,} parameters ({after / before:.1%}){why}")
    if stock:
        inside = f" inside that of depth {host}" if host else ""
        say(f"stock form{inside}: plain diffusers loads it; its README.md shows how to follow the timesteps")
    else:
        others = [d for d in range(1, model.full_depth) if stock_obstacle(cut.unet, d) is None]
        advice = f"; export.host=true pads it, depths {', '.join(map(str, others))} have one" if others else ""
        say(f"depth {depth} has no stock form ({obstacle}): idcompress.load_pipeline loads it{advice}")
    say(f"exported: {show(folder)}; use it by model.path={show(folder)}")
    if config.export.push_to:
        say(f"pushed: {hub.push(folder, config.export.push_to)}")
    return []


def new_folder(path: str | None) -> Path:
    """export.path, which must not be there yet or be empty."""
    if path is None:
        raise IdcError("export wants export.path=FOLDER, a new or empty folder")
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise IdcError(f"export.path={folder} exists and is not an empty folder; choose another, or remove it")
    return folder


def size(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def without_path(model: dict[str, Any]) -> dict[str, Any]:
    """A recipe's `model` as strangers may read it: of a local folder the name."""
    public = {name: model.get(name) for name in ("name", "repositories", "revision", "digest")}
    return public if model.get("path") is None else public | {"folder": Path(model["path"]).resolve().name}


def evaluations(config: Config, recipe: Recipe, run_dir: RunDir) -> list[Path]:
    """Where evaluations of a recipe may lie: under ./outputs, in the same compress run, beside the recipe."""
    beside = [] if recipe.folder is None else [recipe.folder, recipe.folder.parent]
    own = [OUTPUTS / recipe.task / model_label(config)]
    return [*own, *(place / "evaluate" for place in (run_dir.path.parent, *beside))]
