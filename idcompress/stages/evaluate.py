"""Measure original against compressed, and uniform steps at the same depth"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bench.bench import Bench
from ..bench.comparison import (
    System,
    against,
    at_uniform_steps,
    paired,
    plain_systems,
    searched_row,
    system_of,
    words,
)
from ..bench.costs import called_steps, costs, network_calls
from ..bench.selection import choose_photographs
from ..bench.translate import networks_of
from ..config import Config
from ..console import say, warn
from ..core.guidance import num_branches
from ..core.plan import Plan
from ..core.reuse import computed
from ..core.stats import bootstrap_interval
from ..images.pictures import save_png
from ..metrics._metric import ImageMetric, MetricValue, perfect_ones
from ..runs import files, timing
from ..runs.behind import behind
from ..runs.evaluation import SYSTEMS
from ..runs.places import is_main_process
from ..runs.ranks import agreed
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..types import Batch, Example
from ._run import folder_names, with_depth
from ._values import bench_for, data_of, sampled_plan, uniform_plan

SHARED = True  # among the processes of devices=N
PORTION = 128  # examples that are held at a time; the paper's sets have thousands

Values = dict[str, dict[str, MetricValue]]  # system, metric
Row = dict[str, Any]


def run(
    config: Config,
    recipes: list[Recipe],
    run_dir: RunDir,
    *,
    beside: Mapping[str, Sequence[Recipe]] | None = None,
) -> list[Recipe]:
    """Evaluate every recipe on the same images.

    Writes metrics.json, per_image.csv and images/, for several recipes in a folder steps_N/ each. Makes no recipe.

    Args:
        beside: names of other recipes whose plans are alternatives: for the same model, as many steps each, or for the
            whole model, as many as the same work pays for. Their searches have seen no other photographs.
    """
    recipes = [with_depth(recipe, config) for recipe in recipes]
    portions = Portions(config, recipes[0])
    for recipe, name in zip(recipes, folder_names(recipes), strict=True):
        folder = run_dir.path if len(recipes) == 1 else run_dir / name
        if agreed((folder / "metrics.json").is_file, "what is finished"):
            continue  # a finished part of an interrupted run
        _warn_where_it_differs(config, recipe)
        with timing.record() as seconds:
            result = _evaluate(config, portions, recipe, folder, beside or {})
        files.write_json(folder / "metrics.json", {**result, "timing": timing.summary(seconds)})
    return []


class Portions:
    """The examples of an evaluation, with a bench per portion. The last one is kept, so a small set is opened once."""

    def __init__(self, config: Config, recipe: Recipe) -> None:
        self.number = config.evaluate.num_samples
        with timing.part("load"):
            photos = choose_photographs(data_of(config), recipe, "evaluate", self.number)
        self.open: Callable[[int], Bench] = lru_cache(maxsize=1)(
            lambda first: bench_for(
                config, recipe, photos=photos, first=first, num_samples=min(first + PORTION, self.number)
            )
        )

    def __iter__(self) -> Iterator[Bench]:
        return map(self.open, range(0, self.number, PORTION))


class Some:
    """The systems that are sampled on a part of the images, and that part: evenly spread, and the same for all.

    Attributes:
        indices: of the examples.
        total: examples that the other systems are sampled on.
    """

    def __init__(self, names: frozenset[str], total: int, config: Config) -> None:
        self.names, self.total, number = names, total, min(config.evaluate.num_alternatives or total, total)
        self.indices, self.is_all = {i * total // number for i in range(number)}, number == total

    def of(self, name: str, bench: Bench) -> list[int]:
        """Positions of a bench's examples that a system is sampled on."""
        return [i for i, e in enumerate(bench.examples) if name not in self.names or e.index in self.indices]

    def leaves_out(self, name: str) -> bool:
        """Whether a system is sampled on fewer images than there are."""
        return not self.is_all and name in self.names

    @property
    def note(self) -> str:
        """The part, in words."""
        return f"on {len(self.indices):,} of the {self.total:,} images, evenly spread"

    def wants(self, name: str, metric: ImageMetric) -> bool:
        """Whether a system is measured by a metric: a distance of sets would be one of fewer images."""
        return metric.by_image or not self.leaves_out(name)


def network_passes(systems: Mapping[str, System], some: Some) -> int:
    """Passes of the networks that an evaluation takes: one per image, step and guidance pass, if no result is kept."""
    everywhere = {system for name, system in systems.items() if name not in some.names}
    passes = sum(network_calls(system.plan) for system in everywhere) * some.total
    others = {system for system in systems.values() if system not in everywhere}
    return passes + sum(network_calls(system.plan) for system in others) * len(some.indices)


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
    px, searched_px = config.resolution_px, stage.get("resolution_px")
    if stage and px != searched_px:
        here, there = (f"at {side} px" if side else "at the model's own size" for side in (px, searched_px))
        warn(f"this evaluation is {here}, and the recipe was searched {there}; set resolution_px to compare there")
    given = recipe.num_inference_steps
    if not recipe.is_full and recipe.timesteps is None and given not in (None, config.num_inference_steps):
        warn(f"num_inference_steps={config.num_inference_steps}, the recipe says {given}")


def _compile(bench: Bench, pipeline: Any, plan: Plan) -> None:
    """Compile, in place, the networks of the whole model, of a cut one, and of that at the depths of a plan."""
    depths = {*computed(plan, networks_of(bench.task, pipeline, plan)).depths}
    cut = [bench.at_depth(pipeline)(depth) for depth in depths if depth is not None]
    for sampled in (bench.model.pipeline, pipeline, *cut):
        for network in bench.task.networks(sampled):
            network.compile()


def _evaluate(
    config: Config, portions: Portions, recipe: Recipe, folder: Path, beside: Mapping[str, Sequence[Recipe]]
) -> Row:
    """Measure one recipe and write its files but metrics.json, whose content is returned."""
    # 1. what is run: the three systems, other samplers that the task reports, and what costs as much
    bench = portions.open(0)
    ready = {name: bench.metric(name) for name in bench.available(config.evaluate.metrics)}
    recipe = recipe.derive_model(bench.model.source)
    pipeline, plan = bench.model.for_recipe(recipe), sampled_plan(config, recipe, bench.model.process)
    original = uniform_plan(config, bench.model.process, config.num_inference_steps)
    with timing.part("costs"):
        wanted = partial(costs, bench, pipeline, plan, original, latency=config.evaluate.latency)
        spent = agreed(wanted, "costs")
    if config.evaluate.compile:
        _compile(bench, pipeline, plan)
    systems = _systems(config, bench, pipeline, plan, original)
    shown, plain = {name: name for name in systems}, list[Row]()
    if config.evaluate.alternatives and systems["compressed"] != systems["original"]:
        calls = spent["network_calls"]["compressed"] / num_branches(plan.guidance)
        plain = plain_systems(len(called_steps(plan)), spent["gmacs"], calls)
        systems |= {words(row): system_of(row, bench, pipeline, plan) for row in plain}
        for name, model, other in _others(beside, recipe, plan, plain[0]["num_inference_steps"]):
            row = searched_row(name, model, other, plan, spent["gmacs"])
            systems[words(row)] = System(bench.model.pipeline if model == "original" else pipeline, other)
            plain.append(row)
        for row in plain:
            if row["model"] == "original":
                row["images"] = shown[words(row)] = f"{row.get('name', 'plain')}_{row['sampler']}"

    # 2. their images, a portion at a time, measured and written
    depth_skipped = None if recipe.cut is None else recipe
    few = {words(row) for row in plain}
    if systems["uniform"] not in (systems["original"], systems["compressed"]):
        few.add("uniform")
    some = Some(frozenset(few), portions.number, config)
    say(f"{network_passes(systems, some):,} network passes at the most, less those of results that are kept")
    values, examples = _measure(portions, systems, shown, ready, folder, depth_skipped, original, config, some)

    # 3. what metrics.json says of them
    metrics = {name: _row(m, [values[s][name] for s in SYSTEMS], config.seed) for name, m in ready.items()} | spent
    for row in plain:
        row |= {} if some.is_all else {"num_images": len(some.indices)}
        row["metrics"] = against(values["compressed"], values[words(row)], ready, seed=config.seed)
    samplers = {
        sampler: {name: {s: values[f"{s}{ending}"][name].value for s in SYSTEMS[:2]} for name in ready}
        for sampler, ending in _endings(config, bench).items()
    }
    seen = {example.photo for example in examples} & recipe.searched_photographs()
    if seen:
        warn(f"{len(seen)} of the photographs were seen by a search of this recipe (data.split={config.data.split})")

    # 4. files, and the same on the terminal
    files.write_text(folder / "per_image.csv", _per_image(examples, list(ready), values))
    recipe_file = files.write_json(folder / "evaluated_recipe.json", recipe.to_json())
    title = f"{recipe.kept}, {len(plan)} steps"
    _print(metrics, plain, samplers, list(ready), title, some)
    for row in plain:
        if row.get("name") == "uncut":
            _say_where_the_cut_costs(row, list(ready), title)
    return {
        "version": 1,
        "task": recipe.task,
        "model": recipe.model["name"],
        "data": data_of(config).label,
        "num_images": len(examples),
        "num_photographs": len({example.photo for example in examples}),
        "num_photographs_seen": len(seen),
        "recipe": {
            "file": recipe_file.name,
            "digest": recipe.digest,
            "depth": recipe.depth,
            "timesteps": list(plan.timesteps),
        },
        "guidance": config.guidance(),
        "sampler": config.sampler,
        "device": device_name(pipeline.unet.device),
        "metrics": metrics,
        **({"alternatives": plain} if plain else {}),
        **({"samplers": samplers} if samplers else {}),
    }


def _systems(config: Config, bench: Bench, pipeline: Any, plan: Plan, original: Plan) -> dict[str, System]:
    """The three systems, and two of them by every other sampler that the task reports.

    Each is compared with the original's result by the same sampler, from the same noise.
    """
    full = bench.model.pipeline
    systems = {
        "original": System(full, original),
        "compressed": System(pipeline, plan),
        "uniform": System(pipeline, at_uniform_steps(plan, bench, len(plan))),
    }
    for sampler, ending in _endings(config, bench).items():
        if ending:
            by = [dataclasses.replace(which, sampler=sampler, coefficients=None) for which in (original, plan)]
            systems[f"original{ending}"] = System(full, by[0], reference=f"original{ending}")
            systems[f"compressed{ending}"] = System(pipeline, by[1], reference=f"original{ending}")
    return systems


def _others(
    beside: Mapping[str, Sequence[Recipe]], recipe: Recipe, plan: Plan, affordable: int
) -> Iterator[tuple[str, str, Plan]]:
    """Other plans to set beside a recipe's: name, model and plan.

    Args:
        affordable: steps of the whole model that the plan's work pays for.
    """
    for name, made in beside.items():
        for other in made:
            model, steps = ("compressed", len(plan)) if other.cut == recipe.cut else ("original", affordable)
            if other.plan is not None and other.plan != plan and len(other.plan) == steps:
                yield name, model, other.plan


def _endings(config: Config, bench: Bench) -> dict[str, str]:
    """Samplers that the task reports, with what ends the names of their systems."""
    reported = bench.task.reported_samplers if config.evaluate.alternatives else ()
    return {sampler: "" if sampler == config.sampler else f"_{sampler}" for sampler in reported}


def _measure(
    portions: Portions,
    systems: dict[str, System],
    shown: Mapping[str, str],
    metrics: dict[str, ImageMetric],
    folder: Path,
    depth_skipped: Recipe | None,
    original: Plan,
    config: Config,
    some: Some,
) -> tuple[Values, list[Example]]:
    """Every metric of every system over all portions, and the examples without their pictures.

    Args:
        shown: systems whose images are written, with the name of their folder.
        depth_skipped: a cut model that is shown at the original's plan, on a few examples.
        some: systems that are not sampled on all examples.
    """
    meters = {system: {name: metric.fresh() for name, metric in metrics.items()} for system in systems}
    examples: list[Example] = []
    with behind(portions.open(0).device.type != "cpu") as later:
        for portion in portions:
            for system, of, images, references in _made(portion, systems, some):
                if is_main_process():
                    with timing.part("measure"):
                        for metric in meters[system].values():
                            if some.wants(system, metric):
                                metric.update(Batch(of, images, references))
                if system in shown:
                    with timing.part("files"):
                        later(_save_images, of, images, folder / "images" / shown[system])
            with timing.part("files"):
                later(_save_inputs, portion.examples, folder / "images")
            if depth_skipped is not None:
                _save_depth_skipped(portion, depth_skipped, original, folder / "images", portions.number, config)
            # Names and digests stay, pictures go.
            none = torch.empty(0)
            examples += [dataclasses.replace(e, image=none, target=None, condition=None) for e in portion.examples]
    with timing.part("measure"):
        values = agreed(lambda: {system: _computed(system, own, some) for system, own in meters.items()}, "values")
    return values, examples


def _computed(system: str, meters: Mapping[str, ImageMetric], some: Some) -> dict[str, MetricValue]:
    left_out = MetricValue(None, {}, note="not of a part of the images; set evaluate.num_alternatives=null")
    values = {name: metric.compute() if some.wants(system, metric) else left_out for name, metric in meters.items()}
    if not some.leaves_out(system):
        return values
    return {name: dataclasses.replace(value, note=value.note or some.note) for name, value in values.items()}


def _made(bench: Bench, systems: dict[str, System], some: Some) -> Iterator[tuple[str, list[Example], Tensor, Tensor]]:
    """Every system's images of its examples, beside its reference's; systems that are the same share theirs."""
    made: dict[System, dict[int, Tensor]] = {}
    for name, system in systems.items():
        positions = some.of(name, bench)
        if not positions:
            continue
        missing = [position for position in positions if position not in made.get(system, {})]
        if missing:
            with timing.part(name):
                fresh = system.images(bench, name, missing)
            made.setdefault(system, {}).update(zip(missing, fresh, strict=True))
        theirs = made[systems[system.reference]]
        images, references = (torch.stack([of[place] for place in positions]) for of in (made[system], theirs))
        yield name, [bench.examples[position] for position in positions], images, references


def device_name(device: torch.device) -> str:
    """ "cpu", or the kind and the name of the card."""
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def _save_inputs(examples: Sequence[Example], folder: Path) -> None:
    """What the examples bring along."""
    for kind in ("image", "target", "condition"):
        having = [example for example in examples if getattr(example, kind) is not None]
        _save_images(having, [getattr(example, kind) for example in having], folder / kind)


def _save_depth_skipped(bench: Bench, recipe: Recipe, original: Plan, folder: Path, total: int, config: Config) -> None:
    """Images of the pruned model at the original's steps, which the report shows and nothing measures.

    They are made of report.num_images examples, spread evenly over the `total`.
    """
    number = min(config.report.num_images, total)
    picks = {i * total // number for i in range(number)}
    shown = [example for example in bench.examples if example.index in picks]
    if shown:
        few = dataclasses.replace(bench, examples=shown, _conditioning={})
        with timing.part("depth-skipped"):
            kept = few.references(recipe, original, "depth-skipped")
        with timing.part("files"):
            _save_images(shown, kept, folder / "depth_skipped")


def _save_images(examples: Sequence[Example], images: Tensor | Sequence[Tensor], folder: Path) -> None:
    if not is_main_process():
        return
    for example, image in zip(examples, images, strict=True):
        save_png(image, folder / f"{example.name}.png")


def _row(metric: ImageMetric, values: Sequence[MetricValue], seed: int) -> Row:
    """A metric's row of metrics.json, from its values by SYSTEMS."""
    by_system = dict(zip(SYSTEMS, values, strict=True))
    compressed, uniform = by_system["compressed"], by_system["uniform"]
    per_image = list(compressed.per_image.values())
    notes = {system: value.note for system, value in by_system.items() if value.note}
    higher = metric.higher_is_better
    return {
        **{system: value.value for system, value in by_system.items()},
        **perfect_ones(by_system),
        "unit": metric.unit,
        "higher_is_better": higher,
        "compares": metric.compares,
        "interval": list(bootstrap_interval(per_image, seed=seed)) if per_image else None,
        **paired(compressed, uniform, "compressed_minus_uniform", higher_is_better=higher, seed=seed),
        **({"notes": notes} if notes else {}),
        **({"weights": metric.weight_digests} if metric.weight_digests else {}),
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


def _print(
    metrics: dict[str, Any],
    plain: Sequence[Row],
    samplers: dict[str, Row],
    names: Sequence[str],
    title: str,
    some: Some,
) -> None:
    """The table of the three systems, then a line per plain alternative and per sampler."""
    say(title)
    say(f"  {'metric':<26}{'original':>16}{'compressed':>16}{'uniform':>16}")
    for name, row in metrics.items():
        cells, unit = [_number(row[system]) for system in SYSTEMS], row["unit"]
        if name == "latency_ms" and row["original"] is None:
            name, cells, unit = "latency", ["1", *[_number(row["ratio"])] * 2], "of the original's time, end to end"
        say(f"  {name:<26}{''.join(f'{cell:>16}' for cell in cells)}  {unit}".rstrip())
    if some.leaves_out("uniform"):
        say(f"  uniform: {some.note}")
    for row in plain:
        say(_alternative_line(row, names))
    for sampler, rows in samplers.items():
        cells = [f"{name} {_number(row['original'])} / {_number(row['compressed'])}" for name, row in rows.items()]
        say(f"  by {sampler}, original / compressed: {', '.join(cells)}")


def _alternative_line(row: Row, names: Sequence[str]) -> str:
    """One alternative, by the metric that tells it apart."""
    text, name = f"  {row.get('name', 'plain')}: {words(row)}", _telling(row, names)
    text += f", on {row['num_images']} images" if "num_images" in row else ""
    if name is None:
        return f"{text}: the same images"
    difference = row["metrics"][name]["compressed_minus_this"]
    low, high = (_number(bound) for bound in difference["interval"])
    text += f": {name} {_number(row['metrics'][name]['value'])}; "
    return text + f"compressed is {difference['verdict']} ({_number(difference['mean'])} [{low}, {high}])"


def _say_where_the_cut_costs(row: Row, names: Sequence[str], title: str) -> None:
    """Say it where the whole model, searched the same way, is surely better for as much work."""
    name = _telling(row, names)
    difference = {} if name is None else row["metrics"][name]["compressed_minus_this"]
    if name is not None and difference["verdict"] == "worse":
        steps, value = row["num_inference_steps"], row["metrics"][name]["value"]
        warn(
            f"the whole model in {steps} searched steps works no more than {title}, and is better: {name} "
            f"{_number(value)} against {_number(value + difference['mean'])}. This cut saves memory, not work; the "
            "whole model's recipe lies in the folder uncut"
        )


def _telling(row: Row, names: Sequence[str]) -> str | None:
    """The first metric that compares an alternative image by image; None where its images are the same."""
    return next((name for name in names if row["metrics"][name].get("compressed_minus_this")), None)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
