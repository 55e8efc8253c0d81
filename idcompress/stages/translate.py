"""Translate image files through a recipe or the original model"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..artifacts import files
from ..artifacts.recipe import Recipe
from ..artifacts.run_dir import RunDir
from ..config import Config
from ..console import progress, say
from ..core.timestep_search import gamma_timesteps
from ..data.images import list_images, load_image, save_png
from ..data.photographs import Photograph
from ..errors import IdcError
from ..loading import load_source
from ._run import make_task, show, with_depth


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Write a PNG per input image and translate.json; the first of several recipes is used."""
    recipe = with_depth(recipes[0], config)
    if len(recipes) > 1:
        say(f"of {len(recipes)} recipes the one with {recipe.num_inference_steps} steps is used; others by recipe=FILE")
    paths = input_images(config.image)
    pictures = [load_image(path) for path in paths]  # every file is looked at before anything is computed
    task = make_task(config, recipe.task)
    model = load_source(recipe.task, recipe.model, device=config.device, dtype=config.dtype, prune=recipe.prune)
    pipeline = model.for_recipe(recipe)
    timesteps = list(recipe.timesteps or gamma_timesteps(1.0, recipe.num_inference_steps))

    folder = Path(config.output.path) if config.output.path else run_dir.path
    rows: list[dict[str, Any]] = []
    for index, (path, picture) in enumerate(progress(zip(paths, pictures, strict=True), "translate", len(paths))):
        began = time.perf_counter()
        prompt, output = task.translate_picture(
            pipeline,
            index,
            Photograph(path.stem, path),
            picture,
            config.prompt,
            timesteps,
            config.guidance(),
            seed=config.seed,
            sampler=config.sampler,
        )
        took = time.perf_counter() - began
        target = folder / output_name(path, paths)
        if target.resolve() == path.resolve():
            raise IdcError(f"{target} would overwrite its input; choose another output.path")
        save_png(output, target)
        rows.append({"image": str(path), "output": target.name, "prompt": prompt, "seconds": round(took, 3)})
    settings = {
        "version": 1,
        "task": recipe.task,
        "model": recipe.model["name"],
        "recipe": recipe.digest,
        "depth": recipe.depth,
        "timesteps": timesteps,
        "options": config.task.options,
        "guidance": config.guidance(),
        "seed": config.seed,
        "sampler": config.sampler,
        "images": rows,
    }
    files.write_json(folder / "translate.json", settings)
    say(f"{len(rows)} image{'s' if len(rows) > 1 else ''} in {show(folder)}")
    return []


def input_images(value: Any) -> list[Path]:
    """The files that image= names: a file, a folder, or a list of them.

    Raises:
        IdcError: none given, or none there.
    """
    if value is None:
        raise IdcError("translate wants image=FILE, image=FOLDER or image=[FILE,FILE]")
    given = value if isinstance(value, list) else [value]
    paths: list[Path] = []
    for entry in given:
        path = Path(str(entry))
        paths += list_images(path) if path.is_dir() else [path]
    return paths


def output_name(path: Path, paths: list[Path]) -> str:
    """<stem>.png, with the position where two inputs share a stem."""
    twins = [other for other in paths if other.stem == path.stem]
    return f"{path.stem}.png" if len(twins) == 1 else f"{path.stem}_{paths.index(path)}.png"
