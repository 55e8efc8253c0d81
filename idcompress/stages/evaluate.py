"""Measure original against compressed, and uniform steps at the same depth"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..artifacts import files
from ..artifacts.recipe import Recipe
from ..artifacts.run_dir import RunDir
from ..config import Config
from ..console import say, warn
from ..core.stats import bootstrap_interval
from ..data.images import save_png
from ..metrics._base import ImageMetric, MetricValue
from ..metrics.latency import measure_ratio, synchroniser
from ..tasks import _base
from . import _alternatives
from ._alternatives import paired
from ._bench import Bench, data_label, open_bench
from ._run import with_depth

SYSTEMS = ("original", "compressed", "uniform")


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Evaluate every recipe over the same images.

    Writes metrics.json, per_image.csv and images/ (below steps_N/ where there are several recipes). No recipe is
    made.
    """
    bench: Bench | None = None
    for recipe in recipes:
        recipe = with_depth(recipe, config)
        if bench is None:
            bench = open_bench(config, recipe, split="evaluate", num_samples=config.evaluate.num_samples)
        folder = run_dir.path if len(recipes) == 1 else run_dir / f"steps_{recipe.num_inference_steps}"
        if (folder / "metrics.json").is_file():
            continue  # a finished part of an interrupted run
        _warn_where_it_differs(config, recipe)
        _evaluate(bench, recipe.derive_model(bench.model.source), folder)
    return []


def _warn_where_it_differs(config: Config, recipe: Recipe) -> None:
    stage = recipe.provenance[-1] if recipe.provenance else {}
    for prefix, now, searched in (
        ("", config.guidance() | {"sampler": config.sampler}, recipe.guidance | stage),
        ("task.options.", config.task.options, stage.get("options", {})),
    ):
        for name, value in now.items():
            if searched.get(name, value) != value:
                warn(
                    f"{prefix}{name}={value}, but the recipe was searched at {searched[name]}; "
                    "its timesteps may not suit"
                )
    if not recipe.is_full and recipe.timesteps is None and recipe.num_inference_steps != config.num_inference_steps:
        warn(f"num_inference_steps={config.num_inference_steps}, the recipe says {recipe.num_inference_steps}")


def _evaluate(bench: Bench, recipe: Recipe, folder: Path) -> None:
    config = bench.config
    names = bench.available(config.evaluate.metrics)
    # 1. the three systems; the original is the cached reference of every other comparison
    pipeline = bench.model.for_recipe(recipe)
    uniform = bench.uniform(recipe.num_inference_steps)
    timesteps = uniform if recipe.timesteps is None else list(recipe.timesteps)
    outputs = {"original": bench.references(None, config.num_inference_steps, "original")}
    same_as_original = recipe.is_full and recipe.num_inference_steps == config.num_inference_steps
    outputs["compressed"] = outputs["original"] if same_as_original else bench.images(pipeline, timesteps, "compressed")
    outputs["uniform"] = (
        outputs["compressed"] if timesteps == uniform else bench.images(pipeline, uniform, "uniform steps")
    )

    # for the eye: the pruned model at the original's steps, on some of the images
    if recipe.depth is not None:
        shown = _shown(bench)
        kept = shown.references(recipe, config.num_inference_steps, "depth-skipped")
        _save_images(shown, kept, folder / "images" / "depth_skipped")

    # 2. image metrics, then costs
    values = {system: bench.measure(names, images, outputs["original"]) for system, images in outputs.items()}
    metrics = {name: _row(bench.metric(name), [values[s][name] for s in SYSTEMS], config.seed) for name in names}
    metrics |= costs(bench, pipeline, timesteps)
    plain = []
    if config.evaluate.alternatives and not same_as_original:
        compressed = values["compressed"]
        plain = _alternatives.measure(bench, recipe, pipeline, names, compressed, outputs["original"], metrics["gmacs"])
    samplers = _samplers(bench, pipeline, timesteps, names, values, folder) if config.evaluate.alternatives else {}

    # 3. files
    for system, images in outputs.items():
        _save_images(bench, images, folder / "images" / system)
    for example in bench.examples:
        for kind in ("image", "target", "condition"):
            if getattr(example, kind) is not None:
                save_png(getattr(example, kind), folder / "images" / kind / f"{example.name}.png")
    files.write_text(folder / "per_image.csv", _per_image(bench, names, values))
    recipe_file = files.write_json(folder / "evaluated_recipe.json", recipe.to_json())
    files.write_json(
        folder / "metrics.json",
        {
            "version": 1,
            "task": recipe.task,
            "model": recipe.model["name"],
            "data": data_label(bench.config),
            "num_images": len(bench.examples),
            "recipe": {
                "file": recipe_file.name,
                "digest": recipe.digest,
                "depth": recipe.depth,
                "timesteps": timesteps,
            },
            "guidance": config.guidance(),
            "sampler": config.sampler,
            "device": device_name(pipeline.unet.device),
            "metrics": metrics,
            **({"alternatives": plain} if plain else {}),
            **({"samplers": samplers} if samplers else {}),
        },
    )
    _print_table(metrics, recipe)
    for row in plain:
        say(_alternative_line(row, names))
    for sampler, rows in samplers.items():
        cells = [f"{name} {_number(row['original'])} / {_number(row['compressed'])}" for name, row in rows.items()]
        say(f"  by {sampler}, original / compressed: {', '.join(cells)}")


def _samplers(
    bench: Bench,
    pipeline: Any,
    timesteps: list[int],
    names: Sequence[str],
    values: dict[str, dict[str, MetricValue]],
    folder: Path,
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Every sampler that the task reports, {sampler: {metric: {"original", "compressed"}}}, and its images.

    What is compared with the original's result is compared with that of the same sampler, with common noise.

    Args:
        values: of the configured sampler, {system: {metric: value}}.
    """
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for sampler in bench.task.reported_samplers:
        measured = values
        if sampler != bench.config.sampler:
            other = dataclasses.replace(bench, config=dataclasses.replace(bench.config, sampler=sampler))
            original = other.references(None, bench.config.num_inference_steps, f"original, {sampler}")
            outputs = {"original": original, "compressed": other.images(pipeline, timesteps, f"compressed, {sampler}")}
            measured = {system: bench.measure(names, images, original) for system, images in outputs.items()}
            for system, images in outputs.items():
                _save_images(bench, images, folder / "images" / f"{system}_{sampler}")
        found[sampler] = {name: {system: measured[system][name].value for system in SYSTEMS[:2]} for name in names}
    return found


def device_name(device: torch.device) -> str:
    """ "cpu", or the kind and the name of the card."""
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def _shown(bench: Bench) -> Bench:
    """report.num_images of the examples, evenly over the set, which the report shows side by side."""
    number = min(bench.config.report.num_images, len(bench.examples))
    picks = [bench.examples[i * len(bench.examples) // number] for i in range(number)]
    return dataclasses.replace(bench, examples=picks, _conditioning={})


def _save_images(bench: Bench, images: Tensor, folder: Path) -> None:
    for example, image in zip(bench.examples, images, strict=True):
        save_png(image, folder / f"{example.name}.png")


def _row(metric: ImageMetric, values: Sequence[MetricValue], seed: int) -> dict[str, Any]:
    per_image = list(values[SYSTEMS.index("compressed")].per_image.values())
    notes = {system: value.note for system, value in zip(SYSTEMS, values, strict=True) if value.note}
    return {
        **{system: value.value for system, value in zip(SYSTEMS, values, strict=True)},
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "compares": metric.compares,
        "interval": list(bootstrap_interval(per_image, seed=seed)) if per_image else None,
        **paired(values[1], values[2], "compressed_minus_uniform", higher_is_better=metric.higher_is_better, seed=seed),
        **({"notes": notes} if notes else {}),
        **({"weights": metric.weight_digests} if metric.weight_digests else {}),
    }


def costs(bench: Bench, pipeline: Any, timesteps: list[int]) -> dict[str, Any]:
    """Parameters by both rules, MACs of one network call, steps and (unless switched off) latency."""
    full = bench.model.pipeline
    networks = [bench.task.networks(p) for p in (full, pipeline)]
    steps = (bench.config.num_inference_steps, len(timesteps))
    rows: dict[str, Any] = {}
    size, tokens = full.unet.config.sample_size, bench.task.encoder_tokens(full)
    for name, arguments in (("parameters", {}), ("macs", {"sample_size": size, "encoder_tokens": tokens})):
        metric = registry.load("metric", name).Metric(**arguments)
        before, after = (metric.measure(modules) for modules in networks)
        for key in before:
            rows[key] = _cost(before[key], after[key], metric.unit)
    rows["num_inference_steps"] = _cost(*steps, "")
    if bench.config.evaluate.latency:
        rows["latency_ms"] = _latency(bench, pipeline, timesteps)
    return rows


def _cost(original: float, compressed: float, unit: str) -> dict[str, Any]:
    return {
        "original": original,
        "compressed": compressed,
        "uniform": compressed,
        "unit": unit,
        "higher_is_better": False,
        "interval": None,
        "ratio": compressed / original,
    }


def _latency(bench: Bench, pipeline: Any, timesteps: list[int]) -> dict[str, Any]:
    """One image through each, in turn in one run: the ratio is what can be compared between machines."""
    example = bench.examples[:1]
    conditioning = bench.task.encode(bench.model.pipeline, example)

    def translator(which: Any, steps: list[int]) -> Callable[[], Tensor]:
        return lambda: _base.translate(
            bench.task, which, example, steps, bench.config.guidance(), conditioning=conditioning
        )

    with torch.inference_mode():
        ratio = measure_ratio(
            translator(bench.model.pipeline, bench.uniform(bench.config.num_inference_steps)),
            translator(pipeline, timesteps),
            warmup=1,
            repeats=5,
            synchronise=synchroniser(pipeline.unet.device),
        )
    row = _cost(ratio.base.median_ms, ratio.other.median_ms, "ms per image, denoising and decoding")
    return row | {"ratio": ratio.median, "ratio_quartiles": [ratio.lower_quartile, ratio.upper_quartile]}


def _per_image(bench: Bench, names: Sequence[str], values: dict[str, dict[str, MetricValue]]) -> str:
    """CSV: a row per image, a column per metric and system."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    columns = [(name, system) for name in names for system in SYSTEMS]
    writer.writerow(["index", "name", "prompt", "tags", *(f"{name}.{system}" for name, system in columns)])
    for example in bench.examples:
        cells = [values[system][name].per_image.get(example.index, "") for name, system in columns]
        writer.writerow([example.index, example.name, example.prompt, " ".join(example.tags), *cells])
    return table.getvalue()


def _print_table(metrics: dict[str, Any], recipe: Recipe) -> None:
    say(f"depth {recipe.depth or 'full'}, {recipe.num_inference_steps} steps")
    say(f"  {'metric':<26}{'original':>16}{'compressed':>16}{'uniform':>16}")
    for name, row in metrics.items():
        cells = "".join(f"{_number(row[system]):>16}" for system in SYSTEMS)
        say(f"  {name:<26}{cells}  {row['unit']}".rstrip())


def _alternative_line(row: dict[str, Any], names: Sequence[str]) -> str:
    """One alternative, by the first metric that compares image by image."""
    text = f"  plain: {row['model']} model, {row['num_inference_steps']} uniform steps by {row['sampler']}"
    for name in names:
        difference = row["metrics"][name].get("compressed_minus_this")
        if difference:
            low, high = (_number(bound) for bound in difference["interval"])
            text += f": {name} {_number(row['metrics'][name]['value'])}; "
            return text + f"compressed is {difference['verdict']} ({_number(difference['mean'])} [{low}, {high}])"
    return f"{text}: the same images"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
