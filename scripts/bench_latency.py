"""Latency at real size on one machine: full against cut networks, original against compressed step counts.

    python -m scripts.bench_latency                          three tasks on a GPU, 512 px; under 9 minutes
    python -m scripts.bench_latency --task ip2p              one of them, with every compiled cell
    python -m scripts.bench_latency --device cpu --tiny      only that it runs, in seconds

Random weights of the published architectures, which take the same time as trained ones. A cell is a task, dtype, batch
and mode (eager, or networks compiled); original and compressed take turns in one run, and what counts are the median of
the pairs' ratios and its quartiles. "Networks" is one call of what runs at every step, guidance included; "pipeline"
runs everything: text encoder and autoencoder once, the networks at every step (not the sampler's own arithmetic). The
machine's ceiling is measured in the same run: a large matrix product, and copying within its memory. OUT.json and
OUT.md are written after every cell.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from idcompress import registry
from idcompress.adapters.pipeline import native_size
from idcompress.bench.costs import cut_networks
from idcompress.core.cut import Cut
from idcompress.costs.components import Component, components_of
from idcompress.costs.latency import LatencyRatio, caller, is_full_width, measure_latency, measure_ratio, synchroniser
from idcompress.models.official import published_networks
from idcompress.runs import files
from idcompress.sources.load import load_source


@dataclass(frozen=True)
class Plan:
    """What the paper compresses a task to (Tab. 2), the samples of a network call per image, by guidance, and the
    paper's compressed total time as a share of the original's, which is for its U-Net and machine."""

    depth: int
    steps: tuple[int, int]
    branches: int
    paper_ratio: float


PLANS = {
    "ip2p": Plan(9, (50, 10), 2, 1.40 / 6.54),  # image guidance 1, text guidance 7.5
    "stablesr": Plan(8, (50, 20), 1, 1.01 / 2.94),
    "controlnet": Plan(9, (20, 15), 2, 1.26 / 1.75),
}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
EXPECTED_S = {"eager": 30.0, "compiled": 150.0}  # of the first cell of a mode; then the longest so far counts


counted: dict[tuple[str, str], float] = {}  # GFLOP of a step's networks per image, by task and system


def ceiling(device: str, dtype: torch.dtype, side: int) -> dict[str, float]:
    """Rate of a matrix product of side^3 (TFLOP/s) and of copying side^2 float32 in memory, read and write (GB/s)."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source, target = (torch.empty(4 * side * side, dtype=torch.uint8, device=device) for _ in range(2))
    timing: dict[str, Any] = {"synchronise": synchroniser(device), "repeats": 10}
    product = measure_latency(lambda: a @ b, **timing).median_ms
    copy = measure_latency(lambda: target.copy_(source), **timing).median_ms
    return {"tflops": 2 * side**3 / product / 1e9, "copy_gb_per_s": 2 * target.numel() / copy / 1e6}


def systems(args: argparse.Namespace, task: Any, dtype: torch.dtype, batch: int) -> dict[str, list[Component]]:
    """Components of the original and of the cut model, on their device."""
    plan = PLANS[task.name]
    if args.tiny:
        source = {"name": "tiny", "path": None}
        full = load_source(task.name, source, device=args.device, dtype="float32", prune="depth_skip").pipeline
        image_px, tokens = native_size(full), task.encoder_tokens(full)
    else:
        full, image_px, tokens = published_networks(task.name, args.device, dtype), 512, 77
    pipelines = {"original": full, "compressed": cut_networks(full, Cut("depth_skip", {"depth": plan.depth}))}
    sizes = {"encoder_tokens": tokens, "encodes_image": task.encodes_image}
    sizes |= {"batch_size": batch, "branches": plan.branches}
    return {name: components_of(p, task.networks(p), image_px, **sizes) for name, p in pipelines.items()}


def pipeline(parts: Sequence[Component], step: Callable[[], None], steps: int) -> Callable[[], None]:
    """One run of everything: what is called once, then the networks `steps` times."""
    once = caller([part for part in parts if part.called == "once"])

    def run() -> None:
        once()
        for _ in range(steps):
            step()

    return run


def measure(args: argparse.Namespace, name: str, dtype: str, batch: int, mode: str, rate: float) -> dict[str, Any]:
    """One cell.

    Args:
        rate: of the machine's matrix product, TFLOP/s.
    """
    plan, task = PLANS[name], registry.load("task", name).Task()
    found = systems(args, task, DTYPES[dtype], batch)
    every = {system: [part for part in parts if part.called == "every step"] for system, parts in found.items()}
    torch.compiler.reset()  # full and cut share code, whose compilations count together
    step = {system: caller(parts, mode == "compiled") for system, parts in every.items()}
    run = {
        system: pipeline(parts, step[system], 2 if args.tiny else steps)
        for (system, parts), steps in zip(found.items(), plan.steps, strict=True)
    }
    wait = synchroniser(args.device)
    network = measure_ratio(step["original"], step["compressed"], repeats=args.repeats, synchronise=wait)
    whole = measure_ratio(run["original"], run["compressed"], warmup=1, repeats=3, synchronise=wait)
    times = {"original": network.base, "compressed": network.other}
    totals = {"original": whole.base, "compressed": whole.other}
    row: dict[str, Any] = {"task": name, "dtype": dtype, "batch": batch, "mode": mode, "depth": plan.depth}
    row |= {"steps": plan.steps, "branches": plan.branches, "paper_ratio": plan.paper_ratio}
    row |= {"networks": spread(network), "pipeline": spread(whole)}
    if is_full_width(found["original"][0].network):  # milliseconds of embedded models would say nothing
        for system, parts in every.items():
            if (name, system) not in counted:
                counted[name, system] = 2 * sum(part.costs()["gmacs_with_attention"] for part in parts) / batch
            gflop = counted[name, system] * batch
            for key, time_ms in (("networks", times[system]), ("pipeline", totals[system])):
                row[key][f"{system}_ms"] = time_ms.median_ms
                row[key][f"{system}_quartiles_ms"] = [time_ms.lower_quartile_ms, time_ms.upper_quartile_ms]
            row["networks"][f"{system}_share_of_matrix_rate"] = gflop / times[system].median_ms / rate
    return row


def spread(ratio: LatencyRatio) -> dict[str, float]:
    return {"ratio": ratio.median, "lower_quartile": ratio.lower_quartile, "upper_quartile": ratio.upper_quartile}


def markdown(result: dict[str, Any]) -> str:
    """The cells as a table, with the machine above it."""
    lines = [
        f"`{result['command']}`, {result['date']}: {result['device']}, {result['versions']}.",
        "Ceiling: "
        + "; ".join(
            f"{dtype} {found['tflops']:.3g} TFLOP/s by matrix products, {found['copy_gb_per_s']:.3g} GB/s by copying"
            for dtype, found in result["ceiling"].items()
        )
        + ".",
        "",
        "| task | dtype, mode | batch | networks of a step: full, cut (ms) | ratio [quartiles] | of the matrix rate "
        "| steps | pipeline: original, compressed (s) | ratio [quartiles] | paper |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["cells"]:
        cells = [row["task"], f"{row['dtype']}, {row['mode']}", str(row["batch"])]
        for name, scale in (("networks", 1), ("pipeline", 1e-3)):
            part = row[name]
            times = [part[f"{s}_ms"] * scale for s in ("original", "compressed") if f"{s}_ms" in part]
            cells.append(", ".join(f"{value:.3g}" for value in times) or "not told")
            cells.append(f"{part['ratio']:.3f} [{part['lower_quartile']:.3f}, {part['upper_quartile']:.3f}]")
            if name == "networks":
                shares = [value for key, value in part.items() if key.endswith("matrix_rate")]
                cells += [", ".join(f"{share:.0%}" for share in shares) or "-", " to ".join(map(str, row["steps"]))]
        lines.append(f"| {' | '.join(cells)} | {row['paper_ratio']:.2f} |")
    if result["not_reached"]:
        lines += ["", f"Not reached in {result['minutes']:g} minutes: {'; '.join(result['not_reached'])}."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=list(PLANS), help="repeat for several; default all")
    parser.add_argument("--dtype", action="append", choices=list(DTYPES), help="default float16 and bfloat16")
    parser.add_argument("--batch", action="append", type=int, help="images; default 1 and 8")
    parser.add_argument("--mode", action="append", choices=list(EXPECTED_S), help="default both")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=10, help="turns of the networks; of the pipeline 3")
    parser.add_argument("--minutes", type=float, default=8.5, help="no cell begins that would not end within them")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_latency"), help="without suffix")
    parser.add_argument("--tiny", action="store_true", help="embedded models and two steps")
    args = parser.parse_args(arguments)
    began = time.monotonic()
    dtypes = ["float32"] if args.tiny else args.dtype or ["float16", "bfloat16"]
    batches = args.batch or ([1] if args.tiny else [1, 8])
    modes = args.mode or (["eager"] if args.tiny else list(EXPECTED_S))
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or args.device
    result: dict[str, Any] = {
        "version": 1,
        "command": " ".join(["python -m scripts.bench_latency", *(sys.argv[1:] if arguments is None else arguments)]),
        "date": time.strftime("%Y-%m-%d"),
        "device": device,
        "versions": f"torch {torch.__version__}, diffusers {diffusers.__version__}, CUDA {torch.version.cuda}",
        "minutes": args.minutes,
        "ceiling": {dtype: ceiling(args.device, DTYPES[dtype], 512 if args.tiny else 16384) for dtype in dtypes},
        "cells": [],
        "not_reached": [],
    }
    longest: dict[str, float] = {}
    # Everything eager first: compiling takes a minute or more each.
    for mode, batch, dtype, task in itertools.product(modes, batches, dtypes, args.task or list(PLANS)):
        left_s = 60 * args.minutes - (time.monotonic() - began)
        if left_s < longest.get(mode, EXPECTED_S[mode]):
            result["not_reached"].append(f"{task} {dtype} {mode} batch {batch}")
        else:
            cell_began = time.monotonic()
            result["cells"].append(measure(args, task, dtype, batch, mode, result["ceiling"][dtype]["tflops"]))
            took = time.monotonic() - cell_began
            longest[mode] = max(took, longest.get(mode, 0.0))
            print(f"{task} {dtype} {mode} batch {batch}: {took:.0f} s", flush=True)
        files.write_json(args.out.with_suffix(".json"), result)
        files.write_text(args.out.with_suffix(".md"), markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
