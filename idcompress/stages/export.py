"""Export a compressed model as a folder that plain diffusers or onnxruntime loads"""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.following import check_followed
from ..adapters.graphs import graphs_of_plan
from ..adapters.pipeline import check_weights, own_pipeline, vae_scale_factor
from ..adapters.unet import depth as depth_of
from ..adapters.unet import full_depth
from ..bench.translate import networks_of
from ..config import Config
from ..console import say, warn
from ..core.plan import Plan
from ..core.reuse import computed
from ..costs.parameters import count_parameters
from ..errors import IdcError
from ..export.card import Card, evaluation_of, licence_of
from ..export.component import carry_pipeline, carry_plan, carry_scheduler
from ..export.numpy_sampler import numpy_code
from ..export.onnx import check_packages, export_onnx
from ..export.stock_form import (
    branch_obstacle,
    host_depth,
    save_pipeline,
    stock_obstacle,
    stock_pipeline,
)
from ..runs import files
from ..runs.outputs import whole_folder
from ..runs.recipe import Recipe
from ..runs.run_dir import OUTPUTS, RunDir
from ..schedulers import process_of
from ..sources import folders, hub
from ..sources.load import model_folders
from ..tasks._task import Task
from ._run import model_label, provenance, show, with_depth
from ._values import load_model, make_task, sampled_plan


@dataclass(frozen=True)
class Written:
    """What a form's writer left in the folder.

    Attributes:
        pipeline: as it was written.
        row: what the recipe says of it.
        card: what the card says of it.
        lines: what the user should know.
    """

    pipeline: Any
    row: dict[str, Any]
    card: dict[str, Any]
    lines: list[str]


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Write the folder export.path, whole or not at all; the first of several recipes is used. No recipe is made.

    Raises:
        IdcError: the model does not load or holds NaN, there is something in export.path, the format does not go with
            the other keys, or a graph differs from its network.
    """
    recipe = with_depth(recipes[0], config)
    if len(recipes) > 1:
        say(f"of {len(recipes)} recipes the one with {recipe.num_inference_steps} steps is used; others by recipe=FILE")
    folder = new_folder(config.export.path)
    onnx = config.export.format == "onnx"
    check_format(config)
    where = dataclasses.replace(config, device="cpu", dtype="float32") if onnx else config
    model = load_model(where, recipe)
    recipe = recipe.derive_model(model.source)
    plan = sampled_plan(config, recipe, model.process)
    if recipe.plan is not None:  # a folder is the recipe's own model, whatever else is asked for on the command line
        plan = dataclasses.replace(plan, guidance=recipe.guidance)
    check_plan(plan, config)
    cut = model.for_recipe(recipe)
    check_weights(cut)
    task = make_task(config, recipe.task)
    present = task.networks_of_a_step
    before, uncompressed = ({name: size(getattr(p, name)) for name in present} for p in (cut, model.pipeline))

    with whole_folder(folder, "export.path") as partial:
        # 1. the networks
        written = (write_onnx if onnx else write_diffusers)(config, recipe, task, plan, cut, partial)

        # 2. its recipe with the digest of every file, and its card
        digests = folders.file_digests(partial)
        row = provenance("export", config, run_dir, {}, depth=recipe.depth, **written.row)
        if recipe.cut is not None and recipe.depth is None:
            row["kept"] = recipe.kept
        row |= {"base": without_path(recipe.model), "files": digests}
        here = {"name": recipe.model["name"], "path": None, "repositories": None, "revision": None}
        here["digest"] = files.digest(digests) if onnx else folders.folder_digest([partial])
        if plan.coefficients is not None:
            exported = dataclasses.replace(recipe, model=here, cut=None, weights={})
            row["fit"] = {"key": exported.fit_key(plan, model.process.to_json())}
        recipe.derive(row, model=here, cut=None, weights={}, plan=plan).save(partial / "recipe.json")
        after = {name: size(getattr(written.pipeline, name)) for name in present}
        card = Card(
            recipe,
            task,
            parameters={name: (uncompressed[name], after[name]) for name in present},
            licence=licence_of(model_folders(recipe.task, recipe.model)["pipeline"]),
            metrics=evaluation_of(recipe.digest, evaluations(config, recipe, run_dir)),
            digests=digests,
            **written.card,
        )
        (partial / "README.md").write_text(card.text(), encoding="utf-8")

    # 3. what the user should know
    for name in present:
        now, full = after[name], uncompressed[name]
        why = f", {now - before[name]:,} of them zero for the stock form's sake" if now > before[name] else ""
        say(f"{name}: {now:,} of {full:,} parameters ({now / full:.1%}){why}")
    ours, theirs = (count_parameters(pipeline.unet)[1] for pipeline in (written.pipeline, model.pipeline))
    say(f"unet by the paper's count, without time embedding: {ours:,} of {theirs:,} ({ours / theirs:.1%})")
    for line in written.lines:
        say(line)
    if config.sampler in ("dpm_solver", "unipc") or (config.sampler == "ancestral" and onnx):
        warn(f"sampler={config.sampler}, but what was exported samples by DDIM; its timesteps may not suit")
    how = "its README.md runs it in onnxruntime" if onnx else f"use it by model.path={show(folder)}"
    say(f"exported: {show(folder)}; {how}")
    if config.export.push_to:
        say(f"pushed: {hub.push(folder, config.export.push_to)}")
    return []


def check_format(config: Config) -> None:
    """Raise IdcError where export.format does not go with another key or wants a package that is not there."""
    if config.export.format == "onnx":
        if config.dtype not in ("auto", "float32"):
            raise IdcError(
                f"export.format=onnx is traced in float32, got dtype={config.dtype}; leave dtype at auto, and give "
                "export.precision=float16 or int8"
            )
        check_packages()
    elif config.export.precision != "float32":
        raise IdcError(
            f"export.precision={config.export.precision} is for export.format=onnx; a pipeline folder takes "
            "dtype=float16"
        )
    elif config.export.fold:
        raise IdcError(
            "export.fold: no stock class has a configuration for folded weights; use export.format=onnx, or "
            "idcompress.load_pipeline(recipe, fold=True) in process"
        )


def check_plan(plan: Plan, config: Config) -> None:
    """Raise IdcError for a plan whose steps differ in what they compute, where no folder can follow it."""
    if plan.is_plain:
        return
    if config.export.fold:
        raise IdcError(
            "export.fold=true wants a plan whose steps all compute the same, and this recipe's do not; drop it"
        )
    if config.export.format == "diffusers":
        check_followed(plan)
    elif plan.skipped:
        raise IdcError(
            "export.format=onnx has a graph for each depth, and a step of this recipe's plan passes layers by; use "
            "export.format=diffusers"
        )


def write_diffusers(config: Config, recipe: Recipe, task: Task, plan: Plan, cut: Any, folder: Path) -> Written:
    """A pipeline folder: stock where that is exact, or where the user takes the size of the next depth that has one."""
    followed = None if recipe.free_steps else plan
    depth = depth_of(cut.unet)
    obstacle, branch = stock_obstacle(cut.unet, depth), branch_obstacle(cut)
    if recipe.cut is not None and plan.skipped:
        branch = branch or "its plan passes layers by, which stock classes number otherwise in a cut"
    host = host_depth(cut.unet) if config.export.host and obstacle else None
    varied = followed is not None and not followed.is_plain
    fitted = followed is not None and followed.coefficients is not None
    stock = branch is None and (obstacle is None or host is not None)
    exported = stock_pipeline(cut, followed) if stock else own_pipeline(cut, followed and plan.all_whole)
    save_pipeline(exported, folder)
    brings = stock and not varied and carry_pipeline(exported, folder)
    if stock:
        inside = f" inside that of depth {host}" if host else ""
        how = "follow the timesteps"
        if varied:
            carry_plan(task.following(exported, plan, exported.scheduler), folder)
            how = "run the plan, by a pipeline and a scheduler that the folder brings"
        elif fitted:
            carry_scheduler(exported, folder)
            how = "run the fitted steps, by a scheduler that the folder brings"
        if brings:
            how += f", in the {type(exported).__name__} that the folder brings"
        line = f"stock form{inside}: plain diffusers loads it; its README.md shows how to {how}"
    elif branch is not None:
        line = f"{recipe.kept} has no stock form ({branch}): idcompress.load_pipeline loads it"
    else:
        others = [d for d in range(1, full_depth(cut.unet)) if stock_obstacle(cut.unet, d) is None]
        advice = f"; export.host=true pads it, depths {', '.join(map(str, others))} have one" if others else ""
        line = f"{recipe.kept} has no stock form ({obstacle}): idcompress.load_pipeline loads it{advice}"
    return Written(
        exported,
        row={"host": host, "stock": stock},
        card={
            "library": "diffusers" if stock else "idcompress",
            "pipeline_class": type(exported).__name__,
            "carries_scheduler": stock and (fitted or varied),
            "carries_pipeline": brings,
            "carries_plan": stock and varied,
            "takes_timesteps": "timesteps" in inspect.signature(type(exported).__call__).parameters,
            "host": host,
            "dtype": str(exported.unet.dtype).removeprefix("torch."),
        },
        lines=[line],
    )


def write_onnx(config: Config, recipe: Recipe, task: Task, plan: Plan, cut: Any, folder: Path) -> Written:
    """ONNX graphs, compared with torch; folded, in place, if the user wants it."""
    followed = dataclasses.replace(plan, sampler="ddim", coefficients=None)
    exported = own_pipeline(cut, None if recipe.free_steps else followed.all_whole)
    graphs, timesteps = task.graphs(exported), [int(timestep) for timestep in plan.timesteps]
    of_a_step, really = {*task.networks_of_a_step}, None
    if not plan.is_plain:
        really = computed(plan, networks_of(task, cut, plan))
        common = {graph.name for graph in graphs} - of_a_step
        graphs = graphs_of_plan(task.graphs, exported, really, task.networks_of_a_step[1:])
        of_a_step = {graph.name for graph in graphs} - common
    precision = config.export.precision
    inside = {g.name: "float16" for g in graphs} if precision != "float32" else {}
    if precision == "int8":
        inside |= {g.name: "int8" for g in graphs if g.name in of_a_step}
    errors, saved, sizes = export_onnx(exported, graphs, folder, timesteps, fold=config.export.fold, precisions=inside)
    process = process_of(cut.scheduler)
    example = numpy_code(
        task.numpy_example,
        [graph.name for graph in graphs],
        list(plan.timesteps),
        [process.level(timestep) for timestep in plan.timesteps],
        dict(plan.guidance),
        coefficients=plan.coefficients,
        plan=really,
        prediction_type=cut.scheduler.config.prediction_type,
        latent_channels=cut.vae.config.latent_channels,
        factor=vae_scale_factor(cut),
    )
    return Written(
        exported,
        row={"format": "onnx", "errors": errors, "folded": saved, **({"precision": inside} if inside else {})},
        card={
            "library": "onnxruntime",
            "example": example,
            "errors": errors,
            "folded": saved,
            **({"dtype": precision} if inside else {}),
        },
        lines=[
            *(f"folded: {what}, {parameters:,} parameters less" for what, parameters in saved.items()),
            *(
                f"{name}.onnx: {_size_words(sizes[name], inside.get(name))}, at most {error:.1e} of the largest value "
                "from torch"
                for name, error in errors.items()
            ),
        ],
    )


def _size_words(size: tuple[int, int], precision: str | None) -> str:
    """A graph's bytes, and what they are of float32's."""
    before, after = size
    return f"{after / 1e6:.2f} MB" + (f" in {precision}, {after / before:.1%} of float32's" if precision else "")


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
