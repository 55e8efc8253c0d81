"""Measure original against compressed, and uniform steps at the same depth"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artifacts import files, timing
from ..artifacts.recipe import Recipe
from ..artifacts.run_dir import RunDir
from ..config import Config
from ..console import say, warn
from ..core.stats import bootstrap_interval
from ..data.images import save_png
from ..metrics._base import ImageMetric, MetricValue
from ..types import Batch, Example
from . import _alternatives
from ._alternatives import Plan, paired
from ._bench import Bench, choose_photographs, data_label, open_bench
from ._costs import costs
from ._run import with_depth

SYSTEMS = ("original", "compressed", "uniform")
PORTION = 128  # examples that are held at a time; the paper's sets have thousands

Values = dict[str, dict[str, MetricValue]]  # plan, metric


class Portions:
    """The examples of an evaluation, a bench for each portion; one portion is kept, so small sets are made once."""

    def __init__(self, config: Config, recipe: Recipe) -> None:
        self.number = config.evaluate.num_samples
        with timing.part("load"):
            photos = choose_photographs(config, recipe, "evaluate", self.number)
        self.open: Callable[[int], Bench] = lru_cache(maxsize=1)(
            lambda first: open_bench(
                config, recipe, photos=photos, first=first, num_samples=min(first + PORTION, self.number)
            )
        )

    def __iter__(self) -> Iterator[Bench]:
        return map(self.open, range(0, self.number, PORTION))


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Evaluate every recipe over the same images.

    Writes metrics.json, per_image.csv and images/ (below steps_N/ where there are several recipes). No recipe is
    made.
    """
    recipes = [with_depth(recipe, config) for recipe in recipes]
    portions = Portions(config, recipes[0])
    for recipe in recipes:
        folder = run_dir.path if len(recipes) == 1 else run_dir / f"steps_{recipe.num_inference_steps}"
        if (folder / "metrics.json").is_file():
            continue  # a finished part of an interrupted run
        _warn_where_it_differs(config, recipe)
        with timing.record() as seconds:
            result = _evaluate(portions, recipe, folder)
        files.write_json(folder / "metrics.json", {**result, "timing": timing.summary(seconds)})
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


def _evaluate(portions: Portions, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Measure one recipe and write its files but metrics.json, whose content is returned."""
    # 1. what is run: the three systems, other samplers that the task reports, and what costs as much
    bench = portions.open(0)
    config = bench.config
    ready = {name: bench.metric(name) for name in bench.available(config.evaluate.metrics)}
    recipe = recipe.derive_model(bench.model.source)
    pipeline = bench.model.for_recipe(recipe)
    timesteps = tuple(recipe.timesteps or bench.uniform(recipe.num_inference_steps))
    with timing.part("costs"):
        metrics = costs(bench, pipeline, timesteps)
    plans = _plans(bench, recipe, pipeline, timesteps)
    saved, plain = list(plans), list[dict[str, Any]]()
    if config.evaluate.alternatives and plans["compressed"] != plans["original"]:
        plain = _alternatives.rows(recipe, metrics["gmacs"])
        plans |= {_alternatives.words(row): _alternatives.plan(row, bench, pipeline) for row in plain}

    # 2. their images, a portion at a time, into metrics of their own
    meters = {plan: {name: metric.fresh() for name, metric in ready.items()} for plan in plans}
    examples: list[Example] = []
    for portion in portions:
        for plan, images, references in _made(portion, plans):
            with timing.part("measure"):
                for metric in meters[plan].values():
                    metric.update(Batch(portion.examples, images, references))
            if plan in saved:
                _save_images(portion.examples, images, folder / "images" / plan)
        _save_inputs(portion, recipe, folder / "images", portions.number)
        # Names and digests stay, pictures go.
        none = torch.empty(0)
        examples += [dataclasses.replace(e, image=none, target=None, condition=None) for e in portion.examples]

    # 3. values
    with timing.part("measure"):
        values = {plan: {name: metric.compute() for name, metric in own.items()} for plan, own in meters.items()}
        metrics = {
            name: _row(m, [values[system][name] for system in SYSTEMS], config) for name, m in ready.items()
        } | metrics
        for row in plain:
            row["metrics"] = _against(values["compressed"], values[_alternatives.words(row)], ready, config)
    samplers = {
        sampler: {name: {s: values[f"{s}{ending}"][name].value for s in SYSTEMS[:2]} for name in ready}
        for sampler, ending in _endings(bench).items()
    }
    seen = {example.photo for example in examples} & recipe.searched_photographs()
    if seen:
        warn(f"{len(seen)} of the photographs were seen by a search of this recipe (data.split={config.data.split})")

    # 4. files
    files.write_text(folder / "per_image.csv", _per_image(examples, list(ready), values))
    recipe_file = files.write_json(folder / "evaluated_recipe.json", recipe.to_json())
    _print_table(metrics, recipe)
    for row in plain:
        say(_alternative_line(row, list(ready)))
    for sampler, rows in samplers.items():
        cells = [f"{name} {_number(row['original'])} / {_number(row['compressed'])}" for name, row in rows.items()]
        say(f"  by {sampler}, original / compressed: {', '.join(cells)}")
    return {
        "version": 1,
        "task": recipe.task,
        "model": recipe.model["name"],
        "data": data_label(config),
        "num_images": len(examples),
        "num_photographs": len({example.photo for example in examples}),
        "num_photographs_seen": len(seen),
        "recipe": {
            "file": recipe_file.name,
            "digest": recipe.digest,
            "depth": recipe.depth,
            "timesteps": list(timesteps),
        },
        "guidance": config.guidance(),
        "sampler": config.sampler,
        "device": device_name(pipeline.unet.device),
        "metrics": metrics,
        **({"alternatives": plain} if plain else {}),
        **({"samplers": samplers} if samplers else {}),
    }


def _plans(bench: Bench, recipe: Recipe, pipeline: Any, timesteps: tuple[int, ...]) -> dict[str, Plan]:
    """The three systems, and by every other sampler that the task reports two of them.

    What is compared with the original's result is compared with that of the same sampler, with common noise.
    """
    full, sampler = bench.model.pipeline, bench.config.sampler
    many, uniform = (tuple(bench.uniform(n)) for n in (bench.config.num_inference_steps, recipe.num_inference_steps))
    plans = {
        "original": Plan(full, many, sampler),
        "compressed": Plan(pipeline, timesteps, sampler),
        "uniform": Plan(pipeline, uniform, sampler),
    }
    for other, ending in _endings(bench).items():
        if ending:
            plans[f"original{ending}"] = Plan(full, many, other, reference=f"original{ending}")
            plans[f"compressed{ending}"] = Plan(pipeline, timesteps, other, reference=f"original{ending}")
    return plans


def _endings(bench: Bench) -> dict[str, str]:
    """Samplers that the task reports, with what ends the names of their plans."""
    reported = bench.task.reported_samplers if bench.config.evaluate.alternatives else ()
    return {sampler: "" if sampler == bench.config.sampler else f"_{sampler}" for sampler in reported}


def _made(bench: Bench, plans: dict[str, Plan]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every plan's images beside its reference's; plans that are the same share theirs."""
    made: dict[Plan, Tensor] = {}
    for name, plan in plans.items():
        if plan not in made:
            with timing.part(name):
                made[plan] = plan.images(bench, name)
        yield name, made[plan], made[plans[plan.reference]]


def device_name(device: torch.device) -> str:
    """ "cpu", or the kind and the name of the card."""
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def _save_inputs(bench: Bench, recipe: Recipe, folder: Path, total: int) -> None:
    """What the examples bring along; and for the eye the pruned model at the original's steps, on a few of them.

    Those are report.num_images of the `total` examples, evenly over all, which the report shows side by side.
    """
    for kind in ("image", "target", "condition"):
        having = [example for example in bench.examples if getattr(example, kind) is not None]
        _save_images(having, [getattr(example, kind) for example in having], folder / kind)
    number = min(bench.config.report.num_images, total)
    picks = {i * total // number for i in range(number)}
    shown = [example for example in bench.examples if example.index in picks]
    if recipe.depth is not None and shown:
        few = dataclasses.replace(bench, examples=shown, _conditioning={})
        with timing.part("depth-skipped"):
            kept = few.references(recipe, bench.config.num_inference_steps, "depth-skipped")
        _save_images(shown, kept, folder / "depth_skipped")


def _save_images(examples: Sequence[Example], images: Tensor | Sequence[Tensor], folder: Path) -> None:
    with timing.part("files"):
        for example, image in zip(examples, images, strict=True):
            save_png(image, folder / f"{example.name}.png")


def _row(metric: ImageMetric, values: Sequence[MetricValue], config: Config) -> dict[str, Any]:
    """A metric's row of metrics.json, from its values by SYSTEMS."""
    _, compressed, uniform = values
    per_image = list(compressed.per_image.values())
    notes = {system: value.note for system, value in zip(SYSTEMS, values, strict=True) if value.note}
    return {
        **{system: value.value for system, value in zip(SYSTEMS, values, strict=True)},
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "compares": metric.compares,
        "interval": list(bootstrap_interval(per_image, seed=config.seed)) if per_image else None,
        **paired(
            compressed, uniform, "compressed_minus_uniform", higher_is_better=metric.higher_is_better, seed=config.seed
        ),
        **({"notes": notes} if notes else {}),
        **({"weights": metric.weight_digests} if metric.weight_digests else {}),
    }


def _against(
    compressed: dict[str, MetricValue], other: dict[str, MetricValue], metrics: dict[str, ImageMetric], config: Config
) -> dict[str, dict[str, Any]]:
    """An alternative's values, and the compressed plan against them."""
    key, seed = "compressed_minus_this", config.seed
    return {
        name: {"value": value.value}
        | paired(compressed[name], value, key, higher_is_better=metrics[name].higher_is_better, seed=seed)
        for name, value in other.items()
    }


def _per_image(examples: Sequence[Example], names: Sequence[str], values: Values) -> str:
    """CSV: a row per image, a column per metric and system."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    columns = [(name, system) for name in names for system in SYSTEMS]
    writer.writerow(["index", "name", "prompt", "tags", *(f"{name}.{system}" for name, system in columns)])
    for example in examples:
        cells = [values[system][name].per_image.get(example.index, "") for name, system in columns]
        writer.writerow([example.index, example.name, example.prompt, " ".join(example.tags), *cells])
    return table.getvalue()


def _print_table(metrics: dict[str, Any], recipe: Recipe) -> None:
    say(f"depth {recipe.depth or 'full'}, {recipe.num_inference_steps} steps")
    say(f"  {'metric':<26}{'original':>16}{'compressed':>16}{'uniform':>16}")
    for name, row in metrics.items():
        cells, unit = [_number(row[system]) for system in SYSTEMS], row["unit"]
        if name == "latency_ms" and row["original"] is None:
            name, cells, unit = "latency", ["1", *[_number(row["ratio"])] * 2], "of the original's time, end to end"
        say(f"  {name:<26}{''.join(f'{cell:>16}' for cell in cells)}  {unit}".rstrip())


def _alternative_line(row: dict[str, Any], names: Sequence[str]) -> str:
    """One alternative, by the first metric that compares image by image."""
    text = f"  plain: {_alternatives.words(row)}"
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
