"""What a model counts and takes, whole and cut: by component, by step count and, where it is timed, by level.

Everything here is a function of networks with their inputs and of numbers. "original" is the whole model,
"compressed" the cut one.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .components import COUNTS, Component
from .latency import Latency, caller, measure_latency, measure_ratio, synchroniser
from .levels import level_times
from .memory import PeakMemory

Row = dict[str, Any]
Systems = Mapping[str, Sequence[Component]]  # "original", and "compressed" where there is a cut model

WARMUP = 3  # calls before the timed ones
_EVERY_STEP, _ONCE = "every step", "once"


# Counts --------------------------------------------------------------------------------------------------------------


def count(systems: Systems, step_counts: Sequence[int], branches: int) -> dict[str, Any]:
    """Components, and their sums: the networks of a step (the paper's U-Net+), the pipeline, and by step count.

    Args:
        systems: with inputs of one sample.
        branches: samples per image in a step, by guidance.
    """
    components = _component_costs(systems)
    rows = {system: list(parts.values()) for system, parts in components.items()}
    if "compressed" in rows:
        # The paper cuts the U-Net alone; we also drop the parts of side networks that the cut U-Net does not read.
        rows["unet_cut_only"] = list({**components["original"], "unet": components["compressed"]["unet"]}.values())
    networks = {system: _sum([row for row in parts if row["called"] == _EVERY_STEP]) for system, parts in rows.items()}
    by_steps = []
    for steps in sorted(set(step_counts), reverse=True):
        found: Row = {"num_inference_steps": steps, "network_calls": steps * branches}
        for system in systems:
            at_steps = steps * branches * networks[system]["gmacs"]
            once = sum(row["gmacs"] for row in rows[system] if row["called"] == _ONCE)
            found[system] = {"networks_gmacs": at_steps, "gmacs": at_steps + once}
        by_steps.append(found)
    return {
        "guidance_branches": branches,
        "components": components,
        "networks": networks,
        "pipeline": {system: _sum(parts) for system, parts in rows.items()},
        "by_steps": by_steps,
    }


def _component_costs(systems: Systems) -> dict[str, dict[str, Row]]:
    """Costs by system and component."""
    full = {part.name: part.costs() for part in systems["original"]}
    found = {"original": full}
    if "compressed" in systems:
        # Components that the cut leaves alone are the full model's own, so their counts are reused.
        found["compressed"] = {
            part.name: full[part.name] if part.file_params == full[part.name]["file_params"] else part.costs()
            for part in systems["compressed"]
        }
    return found


def _sum(rows: Sequence[Row]) -> Row:
    return {name: sum(row[name] for row in rows) for name in COUNTS}


# Times ---------------------------------------------------------------------------------------------------------------


def time(
    systems: Systems,
    step_counts: Sequence[int],
    *,
    batch_size: int,
    repeats: int,
    compiled: bool,
    milliseconds: bool,
    limit_s: float | None = None,
) -> dict[str, Any]:
    """Medians after warm-up, with the device synchronised: by level, by component, by step count; and peak memory.

    Args:
        systems: on the device that is measured.
        step_counts: the original's time at the first one is 1.
        batch_size: images that the inputs of `systems` hold.
        repeats: timed calls of everything.
        limit_s: of each thing that is timed, after which there are fewer of them, see `latency.rounds`.
        compiled: compile the networks of a step.
        milliseconds: give times beside the ratios.
    """
    parts = systems["original"]
    like = next(parts[0].network.parameters())
    calls = {"warmup": WARMUP, "repeats": repeats, "limit_s": limit_s}
    levels = _level_rows(parts[0], calls, milliseconds)
    networks, ratio = _time_networks(systems, calls, compiled)
    once = {part.name: _median(part, calls) for part in parts if part.called == _ONCE}
    named = {f"networks, {system}": latency for system, latency in networks.items()} | once
    base_ms = networks["original"].median_ms
    return {
        "device": torch.cuda.get_device_name(like.device) if like.device.type == "cuda" else like.device.type,
        "threads": torch.get_num_threads() if like.device.type == "cpu" else None,
        "dtype": str(like.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "compile": compiled,
        **calls,
        "fewest_repeats": min(len(latency.all_ms) for latency in named.values()),
        "levels": levels,
        "components": {name: _component_row(latency, base_ms, milliseconds) for name, latency in named.items()},
        "network_call": ratio,
        "by_steps": _step_rows(
            step_counts, networks, sum(latency.median_ms for latency in once.values()), milliseconds
        ),
        "peak_memory": _peak_memory(systems, like.device),
    }


def _level_rows(unet: Component, calls: Row, milliseconds: bool) -> list[Row]:
    """Levels of the uncut U-Net, each synchronised by itself, as shares of their sum."""
    synchronise = synchroniser(next(unet.network.parameters()).device)
    times_ms = level_times(unet.network, unet.inputs, synchronise=synchronise, what="the levels", **calls)
    calls_ms = [sum(call) for call in zip(*times_ms, strict=True)]
    medians = [statistics.median(level) for level in times_ms]
    rows = []
    for level, own in enumerate(times_ms, start=1):
        shares = [100 * time_ms / call_ms for time_ms, call_ms in zip(own, calls_ms, strict=True)]
        row: Row = {
            "level": level,
            "latency_pct": 100 * medians[level - 1] / sum(medians),
            "cumulative_latency_pct": 100 * sum(medians[:level]) / sum(medians),
            "latency_pct_range": [min(shares), max(shares)],
        }
        if milliseconds:
            row["latency_ms"] = medians[level - 1]
        rows.append(row)
    return rows


def _time_networks(systems: Systems, timed: Row, compiled: bool) -> tuple[dict[str, Latency], Row]:
    """The networks of one step by system, and the cut ones' ratio to the whole ones, which take turns with them."""
    calls = {system: caller(_called_every_step(parts), compiled) for system, parts in systems.items()}
    synchronise = synchroniser(next(systems["original"][0].network.parameters()).device)
    if "compressed" not in calls:
        alone = measure_latency(calls["original"], synchronise=synchronise, what="the networks", **timed)
        return {"original": alone}, {}
    turns = measure_ratio(
        calls["original"], calls["compressed"], synchronise=synchronise, what="the networks, whole and cut", **timed
    )
    ratio = {"ratio": turns.median, "ratio_quartiles": [turns.lower_quartile, turns.upper_quartile]}
    return {"original": turns.base, "compressed": turns.other}, ratio


def _median(part: Component, calls: Row) -> Latency:
    synchronise = synchroniser(next(part.network.parameters()).device)
    return measure_latency(caller([part]), synchronise=synchronise, what=part.name.replace("_", " "), **calls)


def _component_row(latency: Latency, base_ms: float, milliseconds: bool) -> Row:
    row = {"relative": latency.median_ms / base_ms}
    if milliseconds:
        row["median_ms"] = latency.median_ms
        row["lower_quartile_ms"] = latency.lower_quartile_ms
        row["upper_quartile_ms"] = latency.upper_quartile_ms
    return row


def _step_rows(
    step_counts: Sequence[int], networks: Mapping[str, Latency], once_ms: float, milliseconds: bool
) -> list[Row]:
    """Times of an image by step count: calls times medians, and what is called once per image."""
    base_ms = networks["original"].median_ms
    unit_ms = {"networks": step_counts[0] * base_ms, "total": step_counts[0] * base_ms + once_ms}
    rows = []
    for steps in sorted(step_counts, reverse=True):
        row: Row = {"num_inference_steps": steps}
        for system, latency in networks.items():
            found_ms = {"networks": steps * latency.median_ms, "total": steps * latency.median_ms + once_ms}
            row[system] = {f"{name}_ratio": value / unit_ms[name] for name, value in found_ms.items()}
            if milliseconds:
                row[system] |= {f"{name}_ms": value for name, value in found_ms.items()}
        rows.append(row)
    return rows


def _peak_memory(systems: Systems, device: torch.device) -> dict[str, dict[str, float]]:
    """Peak memory of one step's networks; on the CPU of the original only, because it is the whole process's peak."""
    metric = PeakMemory()
    found = {}
    for system, parts in systems.items():
        if system == "original" or device.type == "cuda":
            step = _called_every_step(parts)
            found[system] = metric.measure([part.network for part in step], [part.inputs for part in step])
    return found


def _called_every_step(parts: Sequence[Component]) -> list[Component]:
    return [part for part in parts if part.called == _EVERY_STEP]
