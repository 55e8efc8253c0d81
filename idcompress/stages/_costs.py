"""What a compressed plan costs beside the original: parameters, bytes, MACs, network calls, time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from .. import registry
from ..artifacts import timing
from ..core.guidance import num_branches
from ..metrics.latency import is_full_width, measure_ratio, synchroniser
from ..tasks import _base
from ._bench import Bench

STAGES = ("encode", "denoise", "decode", timing.OTHER)  # of a translation, which they make up


def costs(bench: Bench, pipeline: Any, timesteps: Sequence[int]) -> dict[str, Any]:
    """Parameters by both rules and their bytes, MACs of one network call, steps, calls and (unless off) latency."""
    full = bench.model.pipeline
    networks = [bench.task.networks(p) for p in (full, pipeline)]
    rows: dict[str, Any] = {}
    size, tokens = full.unet.config.sample_size, bench.task.encoder_tokens(full)
    for name, arguments in (("parameters", {}), ("macs", {"sample_size": size, "encoder_tokens": tokens})):
        metric = registry.load("metric", name).Metric(**arguments)
        before, after = (metric.measure(modules) for modules in networks)
        for key in before:
            rows[key] = _cost(before[key], after[key], metric.unit)
    before, after = (sum(p.nbytes for module in modules for p in module.parameters()) for modules in networks)
    rows["weights_mb"] = _cost(before / 1e6, after / 1e6, "MB")
    many, few, branches = bench.config.num_inference_steps, len(timesteps), num_branches(bench.config.guidance())
    rows["num_inference_steps"] = _cost(many, few, "")
    rows["network_calls"] = _cost(many * branches, few * branches, "per image, one for each guidance branch")
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


def _latency(bench: Bench, pipeline: Any, timesteps: Sequence[int]) -> dict[str, Any]:
    """One image end to end through each, in turn in one run: the ratio is what can be compared between machines.

    Returns:
        a cost's row, with `ratio_quartiles`, `denoising_ratio` (of the networks' share alone) and `stages`: by system
        the shares of encoding, denoising, decoding and the rest in the original's time, which sum to the system's own.
        Milliseconds only where the U-Net is as wide as Stable Diffusion's.
    """
    example, records = bench.examples[:1], dict[str, list[dict[str, float]]]()

    def translator(system: str, which: Any, steps: Sequence[int]) -> Callable[[], None]:
        def translate() -> None:
            with timing.record() as seconds:
                _base.translate(
                    bench.task, which, example, steps, bench.config.guidance(), sampler=bench.config.sampler
                )
            records.setdefault(system, []).append(seconds)

        return translate

    full, many = bench.model.pipeline, bench.uniform(bench.config.num_inference_steps)
    with timing.part("latency"):
        measured = measure_ratio(
            translator("original", full, many),
            translator("compressed", pipeline, timesteps),
            warmup=1,
            repeats=5,
            synchronise=synchroniser(pipeline.unet.device),
        )
    # The run whose time is the median: its stages sum to its time.
    middle = {system: sorted(runs[1:], key=lambda r: math.fsum(r.values()))[2] for system, runs in records.items()}
    base = math.fsum(middle["original"].values())
    denoising = [c["denoise"] / o["denoise"] for o, c in zip(*(runs[1:] for runs in records.values()), strict=True)]
    row = _cost(measured.base.median_ms, measured.other.median_ms, "ms per image, end to end")
    if not is_full_width(full.unet):
        row |= {"original": None, "compressed": None, "uniform": None}
    return row | {
        "ratio": measured.median,
        "ratio_quartiles": [measured.lower_quartile, measured.upper_quartile],
        "denoising_ratio": statistics.median(denoising),
        "stages": {system: {name: found[name] / base for name in STAGES} for system, found in middle.items()},
    }
