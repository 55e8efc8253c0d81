"""Count and time a model: parameters, MACs and latency by depth level, component and step count"""

from __future__ import annotations

import dataclasses
import io
import statistics
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from .. import registry
from ..adapters.pipeline import choose_device, choose_dtype, native_size, vae_scale_factor
from ..config import Config
from ..console import say
from ..core.cut import Cut
from ..core.guidance import num_branches
from ..costs.components import COUNTS, Component, components_of
from ..costs.latency import Latency, is_full_width, measure_latency, measure_ratio, synchroniser
from ..costs.levels import level_costs, level_times
from ..costs.memory import PeakMemory
from ..errors import IdcError
from ..models.official import meta_components, random_components
from ..report.figures import level_shares
from ..runs import files
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ._run import with_depth
from ._values import load_model, make_task

Row = dict[str, Any]
Systems = dict[str, list[Component]]
STEPS = (5, 10, 15, 20, 50)  # of the table by step count, beside those of the run
WARMUP = 3


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Write profile.json and levels.png. No recipe is made.

    The published models are counted on the meta device and timed with random weights, which take the same time.

    Raises:
        IdcError: no architecture is known, or the image size does not fit it.
    """
    recipe = with_depth(recipes[0], config)
    task = make_task(config, recipe.task)
    published = recipe.model.get("path") is None and recipe.model["name"] != "tiny"

    # 1. counts
    pipeline = published_networks(recipe.task) if published else _load(config, recipe)
    tokens = 77 if published else task.encoder_tokens(pipeline)
    image_px = config.profile.resolution_px or native_size(pipeline)
    _check_size(image_px, pipeline)

    def systems(full: Any, batch_size: int, branches: int) -> Systems:
        """Components of the full model and, if the recipe cuts it, of the cut one."""
        pipelines = {"original": full}
        if recipe.cut is not None:
            pipelines["compressed"] = cut_networks(full, recipe.cut)
        return {
            name: components_of(
                p,
                task.networks(p),
                image_px,
                encoder_tokens=tokens,
                encodes_image=task.encodes_image,
                batch_size=batch_size,
                branches=branches,
            )
            for name, p in pipelines.items()
        }

    levels = level_costs(pipeline.unet, image_px // vae_scale_factor(pipeline), encoder_tokens=tokens)
    totals = _totals(config, recipe, systems(pipeline, 1, 1), len(levels))

    # 2. times
    if config.profile.latency:
        if published:
            device = choose_device(config.device)
            say(f"timing the published architecture with random weights on {device}")
            pipeline = published_networks(recipe.task, device, choose_dtype(config.dtype, device))
        timed = systems(pipeline, config.profile.batch_size, totals["guidance_branches"])
        counts = [config.num_inference_steps, *(row["num_inference_steps"] for row in totals["by_steps"])]
        totals["latency"] = {
            "image_px": image_px,
            **_latency(config, timed, list(dict.fromkeys(counts)), milliseconds=is_full_width(pipeline.unet)),
        }

    # 3. files
    result = {"version": 1, "task": recipe.task, "model": recipe.model["name"], "levels": levels, "totals": totals}
    files.write_json(run_dir / "profile.json", result)
    files.write_bytes(run_dir / "levels.png", level_shares(levels, totals.get("latency", {}).get("levels")).data)
    say(_tables(result, image_px))
    return []


def published_networks(task: str, device: str = "meta", dtype: torch.dtype = torch.float32) -> Any:
    """The networks of a published pipeline without its weights, reached as those of a loaded one are."""
    components = meta_components(task) if device == "meta" else random_components(task, device)
    for component in components.values():
        torch.nn.Module.to(component, dtype)
    return SimpleNamespace(components=components, **components)


def _load(config: Config, recipe: Recipe) -> Any:
    source = {k: v for k, v in recipe.model.items() if k != "digest"}
    return load_model(config, dataclasses.replace(recipe, model=source)).pipeline


def cut_networks(pipeline: Any, cut: Cut) -> Any:
    """What `published_networks` gives, or a pipeline, after a cut; what the cut leaves alone is shared."""
    replaced = registry.load("prune", cut.method, "prune.name").apply(pipeline.components, cut)
    components = {**pipeline.components, **replaced}
    return SimpleNamespace(components=components, **components)


def _check_size(image_px: int, pipeline: Any) -> None:
    # Every level of the U-Net's blocks but the first halves the latents.
    multiple = vae_scale_factor(pipeline) * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    if image_px % multiple:
        raise IdcError(f"profile.resolution_px must be a multiple of {multiple} for this model, got {image_px}")


def _totals(config: Config, recipe: Recipe, systems: Systems, full_depth: int) -> dict[str, Any]:
    """Components, and their sums: the networks of a step (the paper's U-Net+), the pipeline, and by step count."""
    full = {part.name: part.costs() for part in systems["original"]}
    components = {"original": full}
    if "compressed" in systems:
        # What a cut leaves alone has all its parameters still, and is not counted again.
        components["compressed"] = {
            part.name: full[part.name] if part.file_params == full[part.name]["file_params"] else part.costs()
            for part in systems["compressed"]
        }
    rows = {system: list(parts.values()) for system, parts in components.items()}
    if "compressed" in rows:
        # The paper cuts the U-Net alone; ours drops what nobody reads of its side networks too.
        rows["unet_cut_only"] = list({**full, "unet": components["compressed"]["unet"]}.values())
    sums: dict[str, dict[str, Row]] = {"networks": {}, "pipeline": {}}
    for system, parts in rows.items():
        sums["networks"][system] = _sum([part for part in parts if part["called"] == "every step"])
        sums["pipeline"][system] = _sum(parts)
    branches = num_branches(config.guidance())
    by_steps = []
    for count in sorted(
        {*STEPS, config.num_inference_steps, recipe.num_inference_steps or config.num_inference_steps}, reverse=True
    ):
        row: Row = {"num_inference_steps": count, "network_calls": count * branches}
        for system in systems:
            networks = count * branches * sums["networks"][system]["gmacs"]
            once = sum(part["gmacs"] for part in rows[system] if part["called"] == "once")
            row[system] = {"networks_gmacs": networks, "gmacs": networks + once}
        by_steps.append(row)
    return {
        **{name: full["unet"][name] for name in COUNTS},
        "full_depth": full_depth,
        "depth": recipe.depth,
        "guidance_branches": branches,
        "components": components,
        **sums,
        "by_steps": by_steps,
    }


def _sum(rows: Sequence[Row]) -> Row:
    return {name: sum(row[name] for row in rows) for name in COUNTS}


def _latency(config: Config, systems: Systems, step_counts: Sequence[int], *, milliseconds: bool) -> dict[str, Any]:
    """Medians after warm-up, with the device synchronised: by level, by component, by step count.

    Args:
        step_counts: the original's time at the first one is 1.
        milliseconds: give times beside the ratios.
    """
    parts = systems["original"]
    like = next(parts[0].network.parameters())
    synchronise, repeats = synchroniser(like.device), config.profile.repeats

    def in_ms(**values: float) -> Row:
        return {f"{name}_ms": value for name, value in values.items()} if milliseconds else {}

    # 1. levels of the uncut U-Net, each synchronised by itself
    times_ms = level_times(parts[0].network, parts[0].inputs, warmup=WARMUP, repeats=repeats, synchronise=synchronise)
    calls_ms = [sum(call) for call in zip(*times_ms, strict=True)]
    medians = [statistics.median(level) for level in times_ms]
    levels = []
    for level, own in enumerate(times_ms, start=1):
        shares = [100 * time / call for time, call in zip(own, calls_ms, strict=True)]
        row: Row = {
            "level": level,
            "latency_pct": 100 * medians[level - 1] / sum(medians),
            "cumulative_latency_pct": 100 * sum(medians[:level]) / sum(medians),
            "latency_pct_range": [min(shares), max(shares)],
        }
        levels.append(row | in_ms(latency=medians[level - 1]))

    # 2. the networks of one step, original and cut in turns; then what is called once per image
    steps = {
        system: caller([part for part in found if part.called == "every step"], config.profile.compile)
        for system, found in systems.items()
    }
    network: dict[str, Latency] = {}
    ratio: Row = {}
    if "compressed" in steps:
        turns = measure_ratio(
            steps["original"], steps["compressed"], warmup=WARMUP, repeats=repeats, synchronise=synchronise
        )
        network = {"original": turns.base, "compressed": turns.other}
        ratio = {"ratio": turns.median, "ratio_quartiles": [turns.lower_quartile, turns.upper_quartile]}
    else:
        network["original"] = measure_latency(
            steps["original"], warmup=WARMUP, repeats=repeats, synchronise=synchronise
        )
    base_ms = network["original"].median_ms
    rows = {f"networks, {system}": time for system, time in network.items()}
    for part in parts:
        if part.called == "once":
            rows[part.name] = measure_latency(caller([part]), warmup=WARMUP, repeats=repeats, synchronise=synchronise)
    components = {
        name: {"relative": time.median_ms / base_ms}
        | in_ms(median=time.median_ms, lower_quartile=time.lower_quartile_ms, upper_quartile=time.upper_quartile_ms)
        for name, time in rows.items()
    }
    once_ms = sum(rows[part.name].median_ms for part in parts if part.called == "once")

    # 3. step counts: calls times medians
    unit_ms = {"networks": step_counts[0] * base_ms, "total": step_counts[0] * base_ms + once_ms}
    by_steps = []
    for count in sorted(step_counts, reverse=True):
        row = {"num_inference_steps": count}
        for system, time in network.items():
            found_ms = {"networks": count * time.median_ms, "total": count * time.median_ms + once_ms}
            row[system] = {f"{name}_ratio": value / unit_ms[name] for name, value in found_ms.items()}
            row[system] |= in_ms(**found_ms)
        by_steps.append(row)

    return {
        "device": torch.cuda.get_device_name(like.device) if like.device.type == "cuda" else like.device.type,
        "threads": torch.get_num_threads() if like.device.type == "cpu" else None,
        "dtype": str(like.dtype).removeprefix("torch."),
        "batch_size": config.profile.batch_size,
        "compile": config.profile.compile,
        "warmup": WARMUP,
        "repeats": repeats,
        "levels": levels,
        "components": components,
        "network_call": ratio,
        "by_steps": by_steps,
        "peak_memory": _peak_memory(systems, like.device),
    }


def caller(parts: Sequence[Component], compiled: bool = False) -> Callable[[], None]:
    """One call of every network after the other; the first calls of a compiled one are slow."""
    calls = [(torch.compile(part.network, dynamic=False) if compiled else part.network, part.inputs) for part in parts]

    def call() -> None:
        with torch.inference_mode():
            for network, inputs in calls:
                network(**inputs)

    return call


def _peak_memory(systems: Systems, device: torch.device) -> dict[str, dict[str, float]]:
    """Of one step's networks; on the CPU, where only the whole process can be measured, of the original alone."""
    metric = PeakMemory()
    found = {}
    for system, parts in systems.items():
        if system == "original" or device.type == "cuda":
            step = [part for part in parts if part.called == "every step"]
            found[system] = metric.measure([part.network for part in step], [part.inputs for part in step])
    return found


def _tables(result: dict[str, Any], image_px: int) -> str:
    """Everything of profile.json that is to be read, as text."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120, color_system=None, highlight=False)
    for title, table in (_level_table(result, image_px), _component_table(result), _step_table(result)):
        console.print(title)
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).rstrip()


def _table(*headings: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def _level_table(result: dict[str, Any], image_px: int) -> tuple[str, Any]:
    totals = result["totals"]
    timed = totals.get("latency", {}).get("levels")
    table = _table(
        *("level", "parameters", "%", "sum %", "file to here", "GMAC", "%", "sum %", "with attention"),
        *(["latency %", "sum %"] if timed else []),
    )
    for position, row in enumerate(result["levels"]):
        cells = [f"D{row['level']:02}", f"{row['params']:,}", _pct(row["params_pct"]), _pct(row["cumulative_pct"])]
        cells += [f"{row['file_params']:,}", _gmacs(row["gmacs"]), _pct(row["gmacs_pct"])]
        cells += [_pct(row["cumulative_gmacs_pct"]), _gmacs(row["gmacs_with_attention"])]
        if timed:
            cells += [_pct(timed[position]["latency_pct"]), _pct(timed[position]["cumulative_latency_pct"])]
        table.add_row(*cells)
    table.add_section()
    cells = ["total", f"{totals['params']:,}", "", "", f"{totals['file_params']:,}"]
    table.add_row(*cells, _gmacs(totals["gmacs"]), "", "", _gmacs(totals["gmacs_with_attention"]))
    title = (
        f"U-Net of {result['task']}, model {result['model']}, {image_px} px. Parameters by the paper's rule, without "
        "time embedding; file to here: all parameters of a U-Net cut at this depth. GMAC of one call: convolutions and "
        "linear layers, the sum being the cut U-Net's; and with attention products."
    )
    return title, table


def _component_table(result: dict[str, Any]) -> tuple[str, Any]:
    totals = result["totals"]
    latency = totals.get("latency", {})
    headings = ["component", "called", "in the file", "paper's rule", "GMAC", "with attention"]
    table = _table(*headings, *(["time"] if latency else []))

    def add(name: str, row: Row, called: str = "", time: Any = None) -> None:
        cells = [f"{row['file_params']:,}", f"{row['params']:,}", _gmacs(row["gmacs"])]
        cells += [_gmacs(row["gmacs_with_attention"]), "" if time is None else f"{time:.3g}"]
        table.add_row(name, called, *cells[: len(headings) - 2 + bool(latency)])

    for name, row in totals["components"]["original"].items():
        add(name, row, row["called"], latency.get("components", {}).get(name, {}).get("relative"))
        cut = totals["components"].get("compressed", {}).get(name, row)
        if cut != row:
            add("  cut", cut, row["called"])
    table.add_section()
    for label, key in (("networks of a step", "networks"), ("pipeline", "pipeline")):
        is_step = key == "networks" and bool(latency)
        add(label, totals[key]["original"], time=1.0 if is_step else None)
        if "compressed" in totals[key]:
            add("  cut", totals[key]["compressed"], time=latency["network_call"]["ratio"] if is_step else None)
            if totals[key]["unet_cut_only"] != totals[key]["compressed"]:
                add("  cut, side networks whole", totals[key]["unet_cut_only"])
    depth = f" Cut at depth {totals['depth']} of {totals['full_depth']}." if totals["depth"] else ""
    return f"Components: parameters by both rules, and GMAC of one call for one image.{depth}", table


def _step_table(result: dict[str, Any]) -> tuple[str, Any]:
    totals = result["totals"]
    latency, systems = totals.get("latency"), list(totals["components"])
    timed = {row["num_inference_steps"]: row for row in latency["by_steps"]} if latency else {}
    names = {"original": "original", "compressed": "cut"}
    table = _table(
        "steps",
        "calls",
        *(f"GMAC, {names[system]}" for system in systems),
        *(f"time, {names[system]}" for system in systems if latency),
    )
    for row in totals["by_steps"]:
        cells = [str(row["num_inference_steps"]), str(row["network_calls"])]
        cells += [f"{_gmacs(row[s]['networks_gmacs'])} / {_gmacs(row[s]['gmacs'])}" for s in systems]
        if latency:
            cells += [_time(timed[row["num_inference_steps"]][s]) for s in systems]
        table.add_row(*cells)
    title = (
        f"One image by step count, guidance included (samples per step: {totals['guidance_branches']}): networks / all."
    )
    return title + (" Times are calls times medians." if latency else ""), table


def _time(row: Row) -> str:
    if "total_ms" in row:
        return f"{row['networks_ms'] / 1000:.3g} / {row['total_ms'] / 1000:.3g} s"
    return f"{row['networks_ratio']:.3f} / {row['total_ratio']:.3f}"


def _pct(value: float) -> str:
    return f"{value:.2f}"


def _gmacs(value: float) -> str:
    return f"{value:.4g}" if value < 10 else f"{value:.2f}" if value < 10_000 else f"{value:,.0f}"
