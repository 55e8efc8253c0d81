"""Translate image files through a recipe or the original model"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ..adapters.pipeline import working_size
from ..bench.tiles import translate_in_tiles, wants_tiles
from ..bench.translate import translate
from ..config import Config
from ..console import progress, say, warn
from ..core.plan import Plan
from ..errors import IdcError
from ..images.photo_sets import Photograph
from ..images.pictures import list_images, load_image, to_pil
from ..runs import files
from ..runs.outputs import OutputFolder, folded, numbered
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..sources.load import load_source
from ..sources.model import Model
from ._run import show, with_depth
from ._values import load_model, make_task, sampled_plan, uniform_plan

COMPARISON = "_compare.png"  # what the name of a comparison ends in
_ENLARGED_PX = 1024  # the longer side that a small picture of a comparison is enlarged to, at most


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Write a PNG per input image and translate.json; the first of several recipes is used.

    With translate.compare also <name>_compare.png: the original's result and the compressed model's, with both times.
    A name that a file has which this command did not make is left to it, and the result gets a free one.
    """
    recipe = with_depth(recipes[0], config)
    if len(recipes) > 1:
        say(f"of {len(recipes)} recipes the one with {recipe.num_inference_steps} steps is used; others by recipe=FILE")
    paths = input_images(config.image)
    pictures = [load_image(path) for path in paths]  # every file is looked at before anything is computed
    place = Path(config.output.path) if config.output.path else run_dir.path
    folder = OutputFolder(place, run_dir, overwrite=config.output.overwrite, keep=paths)
    stems = folder.choose(output_stems(paths), [".png", COMPARISON] if config.translate.compare else [".png"])
    (listing,) = folder.choose(["translate"], [".json"])
    task = make_task(config, recipe.task)
    model = load_model(config, recipe)
    pipeline, plan = model.for_recipe(recipe), sampled_plan(config, recipe, model.process)
    original = original_model(config, recipe, model).pipeline if config.translate.compare else None
    at_depth = cache(lambda depth: model.cut_further(pipeline, depth))
    many = uniform_plan(config, model.process, config.num_inference_steps)

    in_tiles = config.translate.tiles and not task.works_in_tiles
    if in_tiles and task.tiles_note and any(wants_tiles(pipeline, one, config.resolution_px) for one in pictures):
        warn(f"translate.tiles: {task.tiles_note}")

    def timed(pipeline: Any, plan: Plan, index: int, picture: Image.Image) -> tuple[str, Tensor, float]:
        common = pipeline, index, Photograph(paths[index].stem, paths[index]), picture, config.prompt_of(index), plan
        settings: dict[str, Any] = {"seed": config.seed, "resolution_px": config.resolution_px}
        began = time.perf_counter()
        if in_tiles and wants_tiles(pipeline, picture, config.resolution_px):
            prompt, output = translate_in_tiles(task, *common, at_depth=at_depth, **settings)
        else:
            prompt, output = task.translate_picture(
                *common,
                translate=lambda example: translate(
                    task, pipeline, [example], plan, seed=config.seed, at_depth=at_depth
                )[0],
                **settings,
            )
        return prompt, output, time.perf_counter() - began

    rows: list[dict[str, Any]] = []
    if original is not None:  # the first call of a network takes longer than the rest
        last = plan.all_whole.steps[-1:]
        warm_up = dataclasses.replace(plan, steps=last, fill="zero", sampler="ddim", coefficients=None)
        small = ImageOps.contain(pictures[0], (working_size(pipeline, config.resolution_px),) * 2)
        timed(pipeline, warm_up, 0, small), timed(original, warm_up, 0, small)
    for index, path in enumerate(progress(paths, "translate", len(paths))):
        prompt, output, took = timed(pipeline, plan, index, pictures[index])
        target = folder.write(stems[index], ".png", png_bytes(to_pil(output)))
        row: dict[str, Any] = {"image": str(path), "output": target.name, "prompt": prompt, "seconds": round(took, 3)}
        if original is not None:
            _, reference, original_took = timed(original, many, index, pictures[index])
            titles = [f"original, {len(many)} steps", f"{describe_depth(recipe)}, {len(plan)} steps"]
            panels = zip(titles, (reference, output), (original_took, took), strict=True)
            picture = side_by_side([(f"{title}: {seconds:.2f} s", to_pil(image)) for title, image, seconds in panels])
            row["compare"] = folder.write(stems[index], COMPARISON, png_bytes(picture)).name
            row["original_seconds"] = round(original_took, 3)
        rows.append(row)
    settings = {
        "version": 1,
        "task": recipe.task,
        "model": recipe.model["name"],
        "recipe": recipe.digest,
        "depth": recipe.depth,
        "timesteps": list(plan.timesteps),
        "options": config.task.options,
        **({"tiles_px": working_size(pipeline, config.resolution_px)} if in_tiles else {}),
        "guidance": config.guidance(),
        "seed": config.seed,
        "sampler": config.sampler,
        "images": rows,
    }
    folder.write(listing, ".json", files.json_bytes(settings))
    say(f"{len(rows)} image{'s' if len(rows) > 1 else ''} in {show(place)}")
    return []


def original_model(config: Config, recipe: Recipe, model: Model) -> Model:
    """The uncompressed model of a recipe; of an exported folder that which it was exported from.

    Raises:
        IdcError: it was exported from a local folder, whose place the export does not tell.
    """
    row = next((row for row in recipe.provenance if row["stage"] == "export"), None)
    if row is None:
        return model
    if "folder" in row["base"]:
        raise IdcError(
            f"translate.compare: {config.model.path} was exported from the local folder {row['base']['folder']}, whose "
            "place it does not tell; give the recipe that it was made with, recipe=FILE, in place of model.path"
        )
    return load_source(recipe.task, row["base"], device=config.device, dtype=config.dtype)


def describe_depth(recipe: Recipe) -> str:
    """The compressed model in a word or two."""
    row = next((row for row in recipe.provenance if row["stage"] == "export"), {"depth": recipe.depth})
    if row["depth"] is None:
        return str(row.get("kept", recipe.kept))
    return f"depth {row['depth']}"


def side_by_side(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures in a row, on white, each below its title.

    Small ones are enlarged until the titles fit, as far as `_ENLARGED_PX` allows: a strip, which is narrow and long,
    gets white beside it instead.
    """
    margin, line_px = 8, 20
    font = ImageFont.load_default(size=14)
    widest = max(font.getlength(title) for title, _ in panels)
    room = _ENLARGED_PX // max(max(image.size) for _, image in panels)
    factor = max(1, min(room, math.ceil(widest / min(image.width for _, image in panels))))
    enlarged = [(title, ImageOps.scale(image, factor, Image.Resampling.NEAREST)) for title, image in panels]
    widths = [max(image.width, math.ceil(font.getlength(title))) for title, image in enlarged]
    width = sum(widths) + (len(widths) + 1) * margin
    height = max(image.height for _, image in enlarged) + line_px + 2 * margin
    canvas, left = Image.new("RGB", (width, height), "white"), margin
    draw = ImageDraw.Draw(canvas)
    for (title, image), panel_px in zip(enlarged, widths, strict=True):
        draw.text((left, margin // 2), title, fill="black", font=font)
        canvas.paste(image, (left, line_px + margin))
        left += panel_px + margin
    return canvas


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
    """The name of one input's result among those of all inputs: <stem>.png, see `output_stems`."""
    return f"{output_stems(paths)[paths.index(path)]}.png"


def output_stems(paths: list[Path]) -> list[str]:
    """What the files of every input's result are called, without their endings.

    That is the input's stem, with its position behind it where two inputs have the same, on a disk that knows no case,
    or where another input's comparison would have the name. No two results share a name, comparisons included.
    """
    number = Counter(folded(path.stem) for path in paths)
    taken: set[str] = set()
    stems: dict[int, str] = {}

    def take(position: int, stem: str) -> bool:
        names = {folded(f"{stem}{ending}") for ending in (".png", COMPARISON)}
        if names & taken:
            return False
        taken.update(names)
        stems[position] = stem
        return True

    for position, path in enumerate(paths):  # first those that nobody shares
        if number[folded(path.stem)] == 1:
            take(position, path.stem)
    for position, path in enumerate(paths):
        tries = itertools.chain([f"{position}"], (f"{position}_{further}" for further in itertools.count(2)))
        while position not in stems:
            take(position, numbered(path.stem, next(tries), (".png", COMPARISON)))
    return [stems[position] for position in range(len(paths))]


def png_bytes(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()
