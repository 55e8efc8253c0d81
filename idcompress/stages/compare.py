"""Lay methods side by side: quality with intervals, size, work, time, and what each search took"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import registry
from ..bench.comparison import kinds_of, only, paired
from ..bench.costs import costs
from ..bench.translate import wants_coefficients
from ..config import Config
from ..console import say, warn
from ..core.cut import Cut
from ..core.guidance import num_branches
from ..core.plan import Plan
from ..errors import IdcError, did_you_mean
from ..images.pictures import save_png
from ..metrics._metric import ImageMetric, MetricValue
from ..report import comparison as report
from ..report import page
from ..report.collect import Evaluation, as_written, evaluations_in
from ..report.figures import charts
from ..runs import files, timing
from ..runs.evaluation import COSTS
from ..runs.places import is_main_process
from ..runs.ranks import agreed
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir, read_info
from ._lab import Arm, Lab, Target
from ._run import code_state, show, with_depth
from ._values import data_of

SHARED = True  # among the processes of devices=N


@dataclass(frozen=True)
class Method:
    """A row as conf/compare describes it: a way to make images.

    Attributes:
        label: in tables; the row's name where it is empty.
        cut: "none", "search" (what Alg. 1 finds), "recipe" (the run's), or a prune method with its parameters.
        recipe: a file or folder, whose cut, weights and, without `timesteps`, plan the row takes.
        timesteps: a strategy's name, or its name and parameters; None for uniform steps, or the recipe's plan.
        sampler: None for that of the block's reference.
        plain: needs no search; the others are held against the best of these.
        num_inference_steps: None for as many as the block's multiply-accumulates pay for.
    """

    label: str = ""
    cut: str | Mapping[str, Any] = "none"
    recipe: str | None = None
    timesteps: str | Mapping[str, Any] | None = None
    sampler: str | None = None
    plain: bool = False
    num_inference_steps: int | None = None


@dataclass(frozen=True)
class Block:
    """What the rows of a block have in common.

    Attributes:
        name: in words; empty where there is one block alone.
        budget: steps of the full model whose multiply-accumulates every row may spend.
        sampler: of the reference, and of rows that name none.
        guidance: scales in place of the run's.
    """

    name: str
    budget: int
    sampler: str
    guidance: Mapping[str, float] = field(default_factory=dict)


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Measure every row of conf/compare/<compare.name>.yaml, or lay out the finished runs in a folder (runs=FOLDER).

    Writes compare.json, compare.csv, compare.png, compare.svg, report.html, report.md, images/ and trace.jsonl (a row
    per sampled plan). No recipe is made.

    Raises:
        IdcError: a row cannot be run as it is described; nothing has been sampled yet.
    """
    if config.runs is not None:
        with as_written(Path(config.runs)):
            value = _of_finished(config, Path(config.runs))
    else:
        value = _compare(config, with_depth(recipes[0], config), run_dir, **_settings(config))
    drawn = report.charts(value)
    files.write_json(run_dir / "compare.json", value)
    files.write_text(run_dir / "compare.csv", report.to_csv(value))
    pictures = []
    if drawn:  # nothing is where no metric has a number
        picture, drawing = charts(drawn, value["title"])
        files.write_bytes(run_dir / "compare.png", picture.data)
        files.write_text(run_dir / "compare.svg", drawing)
        pictures.append(picture)
    blocks = report.compose(value, pictures, run_dir.path)
    files.write_text(run_dir / "report.md", page.to_markdown(blocks))
    written = files.write_text(run_dir / "report.html", page.to_html(blocks))
    say(report.to_text(value))
    say(report.sentence(value))
    say(f"report: {show(written)} (and report.md beside it)")
    return []


def check(config: Config) -> None:
    """Raise IdcError for rows or parameters that could not be run, before hours are spent on what comes before."""
    settings = _settings(config)
    methods, sampler = _methods(settings["rows"]), settings.get("sampler")
    _check_fits(methods, list(_blocks(config, settings.get("num_inference_steps"), sampler, settings.get("guidance"))))


def _settings(config: Config) -> dict[str, Any]:
    """The parameters of the chosen comparison, checked against those of `_compare`."""
    settings = {key: value for key, value in config.compare.items() if key != "name"}
    return registry.bind(_compare, settings, "compare")


def _compare(
    config: Config,
    recipe: Recipe,
    run_dir: RunDir,
    *,
    rows: dict[str, Any],
    num_inference_steps: Any = None,
    sampler: Any = None,
    guidance: dict[str, Any] | None = None,
    metrics: Any = None,
    num_searched: int = 8,
    num_evaluated: int = 24,
    num_images: int = 3,
) -> dict[str, Any]:
    """What compare.json holds; the parameters are explained in conf/compare/equal_cost.yaml."""
    blocks = list(_blocks(config, num_inference_steps, sampler, guidance))
    methods = _those_that_can_run(config, _methods(rows), recipe)
    _check_fits(methods, blocks)
    plain = dataclasses.replace(config, sampler="ddim")  # a row says what it samples by
    lab = Lab(plain, recipe, run_dir, num_evaluated=num_evaluated, num_searched=num_searched)
    bench = lab.benches["evaluate"]
    ready = {name: bench.metric(name) for name in bench.available(metrics or config.evaluate.metrics)}
    found, values = list[dict[str, Any]](), dict[str, dict[str, MetricValue]]()
    pictures = {e.name: e.prompt for e in _spread(bench.examples, num_images)}
    for block in blocks:
        target = _target(lab, block)
        for name, method in methods.items():
            say(f"{method.label or name}{f', {block.name}' if block.name else ''}")
            plan, arm, search = _found(lab, method, block, target)
            row = _row(name, method, block, arm, plan, search, target)
            values[row["name"]] = arm.measure("evaluate", plan, list(ready), target)
            if block is blocks[0]:
                row["images"] = name
                _keep(run_dir / "images" / name, bench.examples, arm.results("evaluate", plan), pictures)
            found.append(row)
    arm, many = _target(lab, blocks[0])
    _keep(run_dir / "images" / "reference", bench.examples, arm.results("evaluate", many), pictures)
    _keep(run_dir / "images" / "image", bench.examples, [example.image for example in bench.examples], pictures)
    kinds = kinds_of(bench.examples)
    for row in found:
        row["metrics"] = _qualities(row, found, values, ready, kinds, config.seed)
    title = f"{page.task_words(config.task.name)}: {config.compare['name']}"
    source = recipe.model.get("path") or recipe.model.get("repositories") or "embedded"
    return {
        "version": 1,
        "task": recipe.task,
        "model": recipe.model["name"],
        "compare": config.compare["name"],
        "title": title,
        "blocks": [block.name for block in blocks],
        "reference": {
            "num_inference_steps": config.num_inference_steps,
            "sampler": " and ".join(dict.fromkeys(block.sampler for block in blocks)),
        },
        "num_images": len(bench.examples),
        "rows": found,
        "pictures": pictures,
        "notes": [
            f"Every row is compared with the full model's result at {config.num_inference_steps} uniform steps by "
            f"{' or, in a block of its own, '.join(dict.fromkeys(block.sampler for block in blocks))}, from the same "
            "noise.",
            f"{lab.images_note()[:1].upper()}{lab.images_note()[1:]}.",
        ],
        "facts": {
            "model": f"{config.model.name}: {source}",
            "data": data_of(config).label,
            "guidance": ", ".join(f"{key} {scale:g}" for key, scale in config.guidance().items()) or "none",
            "seed": str(config.seed),
            "code": code_state(),
        },
    }


# --- what is asked for ------------------------------------------------------------------------------------------------


def _methods(rows: Mapping[str, Any]) -> dict[str, Method]:
    return {name: _method(name, entry) for name, entry in rows.items() if entry is not None}


def _method(name: str, entry: Any) -> Method:
    """One row of the configuration, checked."""
    known = {f.name: f.default for f in dataclasses.fields(Method)}
    if not isinstance(entry, Mapping):
        raise IdcError(f"compare.rows.{name} must be like {{timesteps: gamma, sampler: ddim}}, got {entry!r}")
    for key in entry:
        if key not in known:
            raise IdcError(f"unknown key compare.rows.{name}.{key}{did_you_mean(str(key), list(known))}")
    method = Method(**entry)
    where = f"compare.rows.{name}"
    if method.sampler is not None:
        registry.check("sampler", method.sampler, f"{where}.sampler")
    if method.timesteps is not None:
        registry.check("timesteps", _named(method.timesteps, f"{where}.timesteps")["name"], f"{where}.timesteps")
    if method.cut not in ("none", "search", "recipe"):
        registry.check("prune", _named(method.cut, f"{where}.cut")["name"], f"{where}.cut")
    if method.recipe is not None:
        _recipe_file(method.recipe)
    count = method.num_inference_steps
    if count is not None and (type(count) is not int or count < 1):
        raise IdcError(f"{where}.num_inference_steps must be null or a whole number from 1 on, got {count!r}")
    return method


def _check_fits(methods: Mapping[str, Method], blocks: Sequence[Block]) -> None:
    """Refuse numbers that would be fitted to a reference's noise."""
    for name, method in methods.items():
        for block in blocks:
            noisy = registry.load("sampler", block.sampler, "compare.sampler").SAMPLER.STOCHASTIC
            if noisy and method.sampler is not None and wants_coefficients(method.sampler):
                raise IdcError(
                    f"compare.rows.{name}.sampler={method.sampler} is fitted to the reference, whose steps by "
                    f"compare.sampler={block.sampler} hold fresh noise; use compare.sampler=ddim or leave the row out"
                )


def _named(value: Any, key: str) -> dict[str, Any]:
    """A name, or a name and parameters, as {name: ..., ...}."""
    named = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    if not isinstance(named.get("name"), str):
        raise IdcError(f"{key} must be a name or like {{name: NAME, ...}}, got {value!r}")
    return named


def _blocks(config: Config, budgets: Any, samplers: Any, guidance: Mapping[str, Any] | None) -> Iterator[Block]:
    """Every budget with every sampler of the reference and every combination of scales."""
    counts = budgets if isinstance(budgets, list) else [budgets]
    references = list(dict.fromkeys(samplers if isinstance(samplers, list) else [samplers or "ddim"]))
    guidance = guidance or {}
    for count in counts:
        if type(count) is not int or not 1 <= count <= 1000:
            raise IdcError(f"compare.num_inference_steps must be a number of steps or a list of them, got {budgets!r}")
    for sampler in references:
        registry.check("sampler", sampler, "compare.sampler")
        if wants_coefficients(sampler):
            raise IdcError(
                f"compare.sampler={sampler}: its numbers are fitted to the reference, which needs a sampler without any"
                ", ddim or ancestral for example; rows may name it as theirs"
            )
    scales: dict[str, list[float]] = {}
    for name, value in guidance.items():
        if name not in config.guidance():
            near = did_you_mean(name, list(config.guidance()))
            raise IdcError(f"compare.guidance.{name}: task={config.task.name} has no such scale{near}")
        scales[name] = value if isinstance(value, list) else [value]
        if not all(isinstance(scale, (int, float)) and math.isfinite(scale) for scale in scales[name]):
            raise IdcError(f"compare.guidance.{name} must be a number or a list of numbers, got {value!r}")
    for count, sampler, chosen in itertools.product(
        dict.fromkeys(counts), references, itertools.product(*scales.values())
    ):
        picked = dict(zip(scales, chosen, strict=True))
        words = [f"the work of {count} full step{'s' if count > 1 else ''}" if len(counts) > 1 else ""]
        words += [sampler] if len(references) > 1 else []
        words += [f"{name} {scale:g}" for name, scale in picked.items() if len(scales[name]) > 1]
        yield Block(", ".join(filter(None, words)), count, sampler, picked)


def _those_that_can_run(config: Config, methods: dict[str, Method], recipe: Recipe) -> dict[str, Method]:
    """The rows without those for which there is no recipe, which is said."""
    kept = {}
    for name, method in methods.items():
        if method.cut == "recipe" and recipe.cut is None:
            warn(f"compare.rows.{name} wants the cut of a recipe, and there is none (recipe={config.recipe}); left out")
        else:
            kept[name] = method
    if not kept:
        raise IdcError("compare.rows holds no row to run")
    return kept


# --- what is run ------------------------------------------------------------------------------------------------------


def _target(lab: Lab, block: Block) -> Target:
    """What the rows of a block are compared with."""
    return lab.full(**block.guidance, sampler=block.sampler), lab.config.num_inference_steps


def _found(lab: Lab, method: Method, block: Block, target: Target) -> tuple[Plan, Arm, dict[str, Any] | None]:
    """A row's plan, the model that samples it, and what finding it took."""
    already, given = len(lab.asked), None if method.recipe is None else Recipe.load(_recipe_file(method.recipe))
    changes: dict[str, Any] = {**block.guidance, "sampler": method.sampler or block.sampler}
    if method.timesteps is not None:
        changes["timesteps"] = _named(method.timesteps, "timesteps")
    with timing.record() as spent:
        arm = _arm(lab, method, given, changes, target)
        if given is not None and method.timesteps is None and given.plan is not None:
            return given.plan, arm, None
        steps = method.num_inference_steps or target[0].affordable(block.budget, arm)
        plan = arm.ready(steps if method.timesteps is None else arm.searched(steps, target), target)
    asked = [row for row in {id(row): row for row in lab.asked[already:]}.values() if row["split"] == "search"]
    if not asked and plan.coefficients is None:
        return plan, arm, None
    # The many-step run counts once, whether its states were wanted, its pictures or both.
    many, images = len(target[0].plan(target[1])), len(lab.benches["search"].examples)
    sampled = sum(row["step_images"] for row in asked if "teacher" not in row) + many * images
    sampled += len(plan) * images if plan.coefficients is not None else 0
    branches = num_branches(plan.guidance)
    seconds = math.fsum(row["evaluation_seconds"] for row in asked)
    return (
        plan,
        arm,
        {
            "step_images": sampled,
            "network_calls": sampled * branches,
            "seconds": max(seconds, math.fsum(spent.values())),
        },
    )


def _arm(lab: Lab, method: Method, given: Recipe | None, changes: dict[str, Any], target: Target) -> Arm:
    """The model of a row."""
    if given is not None:
        if given.model.get("digest") not in (None, lab.recipe.model.get("digest"), lab.model.digest):
            raise IdcError(f"compare.rows: {method.recipe} was made for another model than {lab.recipe.model['name']}")
        return lab.of(given, **changes)
    if method.cut == "none":
        return lab.full(**changes)
    if method.cut == "recipe":
        return lab.arm(**changes)
    if method.cut == "search":
        guidance = {name: value for name, value in changes.items() if name not in ("sampler", "timesteps")}
        return lab.arm(
            lab.shallowest(lab.config.depth_search.num_inference_steps, sampler=target[0].config.sampler, **guidance),
            **changes,
        )
    named = _named(method.cut, "cut")
    cut = Cut(named["name"], {key: value for key, value in named.items() if key != "name"})
    return lab.of(dataclasses.replace(lab.recipe, cut=cut, weights={}), **changes)


def _recipe_file(given: str) -> Path:
    path = Path(given)
    path = path / "recipe.json" if path.is_dir() else path
    if not path.is_file():
        raise IdcError(f"compare.rows: no recipe at {given}")
    return path


# --- finished runs ----------------------------------------------------------------------------------------------------


def _of_finished(config: Config, folder: Path) -> dict[str, Any]:
    """What compare.json holds, of the evaluations that were finished in a folder, a sweep's for example.

    Several tasks have a block each; a row's differences are to the first of its block.

    Raises:
        IdcError: there are none.
    """
    found = dict(evaluations_in(folder))
    if not found:
        raise IdcError(f"runs={folder}: no finished evaluation (metrics.json beside per_image.csv) lies in that folder")
    firsts: dict[str, Evaluation] = {}  # of each task
    for evaluation in found.values():
        firsts.setdefault(str(evaluation.metrics["task"]), evaluation)
    several, first = len(firsts) > 1, next(iter(firsts.values()))
    shown = _job_words({path: evaluation.folder for path, evaluation in found.items()})
    rows = [
        _finished_row(path, evaluation, firsts[task], config.seed)
        | {"label": " ".join([path, *shown[path]]), "block": task if several else ""}
        for path, evaluation in found.items()
        for task in [str(evaluation.metrics["task"])]
    ]
    models = list(dict.fromkeys(str(evaluation.metrics["model"]) for evaluation in found.values()))
    same = all(
        _images_of(evaluation) == _images_of(firsts[str(evaluation.metrics["task"])]) for evaluation in found.values()
    )
    return {
        "version": 1,
        "task": ", ".join(firsts),
        "model": ", ".join(models),
        "compare": "runs",
        "title": f"{', '.join(map(page.task_words, firsts))}: finished runs",
        "blocks": [*firsts] if several else [""],
        "reference": {"num_inference_steps": first.original_steps, "sampler": first.metrics.get("sampler", "ddim")},
        "num_images": len(first.rows),
        "rows": rows,
        "pictures": {},
        "notes": [
            "Each row is an evaluation, compared with the full model's result of its own run."
            if same
            else "The evaluations are of different images; rows have differences only where images are the same."
        ],
        "facts": {"folder": str(folder), "code": code_state()},
    }


def _job_words(folders: Mapping[str, Path]) -> dict[str, list[str]]:
    """The words that a sweep gave each job and not all of them; none where the runs are no sweep's."""
    words: dict[str, list[str]] = {}
    for path, folder in folders.items():
        info = next(filter(None, map(read_info, (folder, folder.parent))), {})
        words[path] = [str(word) for word in info.get("words", ())]
    common = set.intersection(*map(set, words.values()))
    return {path: [word for word in own if word not in common] for path, own in words.items()}


def _finished_row(path: str, evaluation: Evaluation, first: Evaluation, seed: int) -> dict[str, Any]:
    """An evaluation as a row of compare.json."""
    known, metrics = evaluation.values, dict[str, Any]()
    depth = f"depth {evaluation.recipe.depth}" if evaluation.recipe.depth else "full depth"
    for name, row in known.items():
        if name in COSTS:
            continue
        minus = {}
        if evaluation is not first and name in first.values:
            own, other = (_per_image(e, name, _images_of(evaluation) & _images_of(first)) for e in (evaluation, first))
            minus = paired(own, other, "minus_first", higher_is_better=row["higher_is_better"], seed=seed)
        metrics[name] = {
            "value": row["compressed"],
            "unit": row["unit"],
            "higher_is_better": row["higher_is_better"],
            **({"perfect": True} if "compressed" in row.get("perfect", ()) else {}),
            **minus,
            "by_kind": {},
        }
    return {
        "name": path,
        "label": path,
        "block": "",
        "plain": False,
        "how": f"{depth}, {evaluation.steps} steps",
        "cut": None if evaluation.recipe.cut is None else evaluation.recipe.cut.to_json(),
        "sampler": evaluation.metrics.get("sampler", "ddim"),
        "timesteps": evaluation.timesteps,
        "num_inference_steps": evaluation.steps,
        "macs_ratio": known["gmacs"]["ratio"] * known["network_calls"]["ratio"],
        "params": known["params"]["compressed"],
        "bytes": round(1e6 * known["weights_mb"]["compressed"]),
        "time_ratio": known["latency_ms"]["ratio"] if "latency_ms" in known else None,
        "search": None,
        "metrics": metrics,
    }


def _images_of(evaluation: Evaluation) -> set[tuple[str, str, str]]:
    return {(row["index"], row["name"], row["prompt"]) for row in evaluation.rows}


def _per_image(evaluation: Evaluation, name: str, some: set[tuple[str, str, str]]) -> MetricValue:
    """A metric's values on some images."""
    values = {
        int(row["index"]): float(row[f"{name}.compressed"])
        for row in evaluation.rows
        if row.get(f"{name}.compressed") and (row["index"], row["name"], row["prompt"]) in some
    }
    return MetricValue(None, values)


# --- what is said of it -----------------------------------------------------------------------------------------------


def _row(
    name: str,
    method: Method,
    block: Block,
    arm: Arm,
    plan: Plan,
    search: dict[str, Any] | None,
    target: Target,
) -> dict[str, Any]:
    """A row of compare.json without its metrics."""
    with timing.part("costs"):
        bench, original = arm.bench("evaluate"), target[0].plan(target[1])
        wanted = partial(costs, bench, arm.pipeline, plan, original, latency=arm.config.evaluate.latency)
        spent = agreed(wanted, "costs")
    cut = arm.recipe.cut
    strategy = "the recipe's" if method.recipe and method.timesteps is None else arm.config.timesteps["name"]
    list_ = "uniform" if method.timesteps is None and not method.recipe else strategy
    model = "full model" if cut is None else bench.model.words(cut)
    return {
        "name": f"{name}, {block.name}" if block.name else name,
        "label": method.label or name,
        "block": block.name,
        "plain": method.plain,
        "how": f"{model}{', fine-tuned' if arm.recipe.weights else ''}, {list_} list, {plan.sampler}",
        "cut": None if cut is None else cut.to_json(),
        "sampler": plan.sampler,
        "timesteps": list(plan.timesteps),
        "num_inference_steps": len(plan),
        "macs_ratio": spent["gmacs"]["ratio"] * spent["network_calls"]["ratio"],
        "params": spent["params"]["compressed"],
        "bytes": round(1e6 * spent["weights_mb"]["compressed"]),
        "time_ratio": spent["latency_ms"]["ratio"] if "latency_ms" in spent else None,
        "search": search,
    }


def _qualities(
    row: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    values: Mapping[str, Mapping[str, MetricValue]],
    metrics: Mapping[str, ImageMetric],
    kinds: Mapping[str, set[int]],
    seed: int,
) -> dict[str, Any]:
    """Every metric of a row: its value, against the block's first row, and against its best plain one.

    Args:
        values: by the row's name.
        kinds: of input -> indices of the images.
    """
    block = [other for other in rows if other["block"] == row["block"]]
    found: dict[str, Any] = {}
    for name, metric in metrics.items():
        of = {other["name"]: values[other["name"]][name] for other in block}
        own, higher = of[row["name"]], metric.higher_is_better
        plain = {o["name"]: float(of[o["name"]].value or 0.0) for o in block if o["plain"]}
        rivals = {"minus_first": block[0]["name"]}
        if plain and not row["plain"]:
            rivals["minus_plain"] = (max if higher else min)(plain, key=plain.__getitem__)
        labels = {other["name"]: other["label"] for other in block}
        found[name] = {
            "value": own.value,
            "unit": metric.unit,
            "higher_is_better": higher,
            **({"perfect": True} if own.perfect else {}),
            **({"note": own.note} if own.note else {}),
            "by_kind": {},
        }
        for kind, some in {report.ALL: None, **kinds}.items():
            part, entry = only(own, some), found[name]
            if some is not None:
                if not part.per_image:
                    continue
                entry = found[name]["by_kind"][kind] = {"value": part.value}
            for key, rival in rivals.items():
                if rival != row["name"]:
                    minus = paired(part, only(of[rival], some), key, higher_is_better=higher, seed=seed)
                    entry |= {key: minus[key] | {"other": labels[rival]}} if minus else {}
    return found


def _spread(examples: Sequence[Any], number: int) -> list[Any]:
    """So many examples, evenly spread over all."""
    number = min(number, len(examples))
    return [examples[i * len(examples) // number] for i in range(number)]


def _keep(folder: Path, examples: Sequence[Any], images: Iterable[Tensor], shown: Mapping[str, str]) -> None:
    """Write the pictures of the examples that are shown, by the examples' names."""
    if not is_main_process():
        return
    for example, image in zip(examples, images, strict=True):
        if example.name in shown:
            save_png(image, folder / f"{example.name}.png")
