"""Count and time a model: parameters, MACs and latency by depth level, component and step count"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..adapters.pipeline import check_weights, choose_device, choose_dtype, native_size, vae_scale_factor
from ..bench.costs import cut_networks
from ..config import Config
from ..console import say
from ..core.guidance import num_branches
from ..costs import profile
from ..costs.components import COUNTS, Component, components_of
from ..costs.latency import is_full_width
from ..costs.levels import level_costs
from ..errors import IdcError
from ..models.official import published_networks
from ..report.figures import level_shares
from ..report.profile import to_text
from ..runs import files
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ._run import with_depth
from ._values import load_model, make_task

STEPS = (5, 10, 15, 20, 50)  # of the table by step count, beside those of the run


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Write profile.json and levels.png. No recipe is made.

    The published models are counted on the meta device and timed with random weights, which take the same time.

    Raises:
        IdcError: no architecture is known, weights of a folder hold NaN, or the image size does not fit it.
    """
    recipe, settings = with_depth(recipes[0], config), config.profile
    task = make_task(config, recipe.task)
    published = recipe.model.get("path") is None and recipe.model["name"] != "tiny"
    branches, given = num_branches(config.guidance()), config.num_inference_steps
    step_counts = sorted({*STEPS, given, recipe.num_inference_steps or given}, reverse=True)

    # 1. counts
    pipeline = published_networks(recipe.task) if published else _load(config, recipe)
    tokens = 77 if published else task.encoder_tokens(pipeline)
    image_px = settings.resolution_px or native_size(pipeline)
    _check_size(image_px, pipeline)

    def systems(full: Any, **sizes: int) -> dict[str, list[Component]]:
        """Components of the full model and, if the recipe cuts it, of the cut one."""
        pipelines = {"original": full}
        if recipe.cut is not None:
            pipelines["compressed"] = cut_networks(full, recipe.cut)
        known: dict[str, Any] = {"encoder_tokens": tokens, "encodes_image": task.encodes_image, **sizes}
        return {
            name: components_of(whole, task.networks(whole), image_px, **known) for name, whole in pipelines.items()
        }

    levels = level_costs(pipeline.unet, image_px // vae_scale_factor(pipeline), encoder_tokens=tokens)
    counts = profile.count(systems(pipeline), step_counts, branches)
    unet = {name: counts["components"]["original"]["unet"][name] for name in COUNTS}
    totals = {**unet, "full_depth": len(levels), "depth": recipe.depth, **counts}
    if recipe.cut is not None and recipe.depth is None:
        totals["kept"] = recipe.kept

    # 2. times
    if settings.latency:
        if published:
            device = choose_device(config.device)
            say(f"timing the published architecture with random weights on {device}")
            pipeline = published_networks(recipe.task, device, choose_dtype(config.dtype, device))
        times = profile.time(
            systems(pipeline, batch_size=settings.batch_size, branches=branches),
            list(dict.fromkeys([given, *step_counts])),
            batch_size=settings.batch_size,
            repeats=settings.repeats,
            compiled=settings.compile,
            milliseconds=is_full_width(pipeline.unet),
            limit_s=settings.limit_s,
        )
        if times["fewest_repeats"] < settings.repeats:
            say(
                f"calls are slow here: some were measured {times['fewest_repeats']} times instead of "
                f"profile.repeats={settings.repeats}; profile.limit_s gives them longer than {settings.limit_s:g} s"
            )
        totals["latency"] = {"image_px": image_px, **times}

    # 3. files
    kept = counts["components"].get("compressed", counts["components"]["original"])["unet"]
    result = {"version": 1, "task": recipe.task, "model": recipe.model["name"], "params": kept["file_params"]}
    result |= {"levels": levels, "totals": totals}
    files.write_json(run_dir / "profile.json", result)
    files.write_bytes(run_dir / "levels.png", level_shares(levels, totals.get("latency", {}).get("levels")).data)
    say(to_text(result, image_px))
    return []


def _load(config: Config, recipe: Recipe) -> Any:
    """The recipe's model, whatever its weights are."""
    source = {k: v for k, v in recipe.model.items() if k != "digest"}
    pipeline = load_model(config, dataclasses.replace(recipe, model=source)).pipeline
    check_weights(pipeline)
    return pipeline


def _check_size(image_px: int, pipeline: Any) -> None:
    # Every level of the U-Net's blocks but the first halves the latents.
    multiple = vae_scale_factor(pipeline) * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    if image_px % multiple:
        raise IdcError(f"profile.resolution_px must be a multiple of {multiple} for this model, got {image_px}")
