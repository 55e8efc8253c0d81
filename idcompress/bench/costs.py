"""What a compressed plan costs beside the original: parameters, bytes, MACs, network calls, time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable
from types import SimpleNamespace
from typing import Any

from .. import registry
from ..adapters.layers import passing_by
from ..adapters.pipeline import vae_scale_factor, working_size
from ..core.cut import Cut
from ..core.guidance import num_branches
from ..core.plan import Fill, Plan, Step
from ..core.reuse import computed, leaves_out
from ..core.sample import without_repeats
from ..costs.latency import is_full_width, measure_ratio, synchroniser
from ..costs.macs import Macs
from ..costs.parameters import Parameters
from ..runs import timing
from ..tasks._task import Task
from .bench import Bench
from .translate import load_sampler, networks_of, translate

STAGES = ("encode", "denoise", "decode", timing.OTHER)  # the parts of a translation, which sum to the whole


def costs(bench: Bench, pipeline: Any, plan: Plan, original: Plan, *, latency: bool) -> dict[str, Any]:
    """What a compressed model and its plan cost beside the original's.

    Args:
        pipeline: the compressed model's.
        plan, original: of the compressed and of the whole model.
        latency: time both, too.

    Returns:
        Per cost its value for `original`, `compressed` and `uniform` (the compressed model at as many uniform steps):
        parameters by both rules and their bytes, MACs of one network call (the mean, where the plan's calls differ),
        steps, calls, and milliseconds.
    """
    full = bench.model.pipeline
    networks = [bench.task.networks(p) for p in (full, pipeline)]
    rows: dict[str, Any] = {}
    for cost in (Parameters(), macs_of(bench.task, full, bench.resolution_px)):
        ours, theirs = (cost.measure(modules) for modules in networks)
        for key in ours:
            rows[key] = _cost(ours[key], theirs[key], cost.unit)
    if leaves_out(plan) or not plan.is_plain:
        work = Work(bench, pipeline)
        plan = work.computed(plan)
        for key in Work.KEYS:
            rows[key] = _cost(ours[key], work.of(plan, key) / network_calls(plan), cost.unit)
            rows[key] |= {"uniform": theirs[key]}
    before, after = (sum(p.nbytes for module in modules for p in module.parameters()) for modules in networks)
    rows["weights_mb"] = _cost(before / 1e6, after / 1e6, "MB")
    rows["num_inference_steps"] = _cost(len(original), len(plan), "")
    calls = _cost(network_calls(original), network_calls(plan), "per image, one for each guidance branch")
    rows["network_calls"] = calls | {"uniform": len(plan) * num_branches(plan.guidance)}
    if latency:
        rows["latency_ms"] = _latency(bench, pipeline, plan, original)
    return rows


class Work:
    """Multiply-accumulates of whole plans, counted from what each of their steps computes."""

    KEYS = ("gmacs", "gmacs_with_attention")

    def __init__(self, bench: Bench, pipeline: Any) -> None:
        self.bench, self.pipeline = bench, pipeline
        self._measured: dict[tuple[int | None, tuple[str, ...]], list[dict[str, float]]] = {}

    def computed(self, plan: Plan) -> Plan:
        """The plan whose steps say what is really computed; timesteps that its sampler passes over are gone."""
        called = without_repeats(plan) if load_sampler(plan.sampler).SKIPS_REPEATS else plan
        return computed(called, networks_of(self.bench.task, self.pipeline, plan))

    def of(self, plan: Plan, key: str = "gmacs") -> float:
        """Billions of multiply-accumulates of all steps, for one image."""
        plan = self.computed(plan)
        return math.fsum(self._step(step, num_branches(plan.guidance), key) for step in plan.steps)

    def _step(self, step: Step, branches: int, key: str) -> float:
        key_of_step = step.depth, step.skip
        if key_of_step not in self._measured:
            which = self.pipeline if step.depth is None else self.bench.at_depth(self.pipeline)(step.depth)
            which = passing_by(which, step.skip)
            task = self.bench.task
            macs = macs_of(task, self.bench.model.pipeline, self.bench.resolution_px)
            self._measured[key_of_step] = [macs.measure([network]) for network in task.networks(which)]
        unet, *sides = self._measured[key_of_step]
        return step.num_passes(branches) * (unet[key] + sum(side[key] for side in sides if step.refresh))


class Sampled:
    """Step-images that were sampled. A step that plans have in common from their beginnings on is one, whatever is kept
    of it, so that an interrupted run counts as one that was not.
    """

    def __init__(self) -> None:
        self._images: dict[tuple[Hashable, str, Fill, tuple[Step, ...]], int] = {}  # of a beginning

    def add(self, what: Hashable, plan: Plan, images: int) -> list[int]:
        """Count a plan that is sampled on the first images of some.

        Args:
            what: tells the images, and the numbers of the plan's sampler if it has any, from others.
            plan: as it is computed.

        Returns:
            Images of each step that had not been sampled before.
        """
        fresh = []
        for position in range(len(plan)):
            beginning = what, plan.sampler, plan.fill, plan.steps[: position + 1]
            before = self._images.get(beginning, 0)
            fresh.append(max(0, images - before))
            self._images[beginning] = max(images, before)
        return fresh


def macs_of(task: Task, pipeline: Any, resolution_px: int | None) -> Macs:
    """The counter of multiply-accumulates at the size that a pipeline samples at, and with its texts."""
    size = working_size(pipeline, resolution_px) // vae_scale_factor(pipeline)
    return Macs(sample_size=size, encoder_tokens=task.encoder_tokens(pipeline))


def gmacs_of_a_step(task: Task, pipeline: Any, resolution_px: int | None) -> float:
    """Billions of multiply-accumulates of all networks of a step, for one image without guidance."""
    return macs_of(task, pipeline, resolution_px).measure(task.networks(pipeline))["gmacs"]


def cut_networks(pipeline: Any, cut: Cut) -> Any:
    """The networks of a pipeline after a cut, reached as a pipeline's are; what the cut leaves alone is shared.

    Unlike `Model.at`, it wants no more of a pipeline than its `components`, so the published networks will do.
    """
    replaced = registry.load("prune", cut.method, "prune.name").apply(pipeline.components, cut)
    components = {**pipeline.components, **replaced}
    return SimpleNamespace(components=components, **components)


def network_calls(plan: Plan) -> int:
    """Samples that go through the networks per image: one per step and guidance pass that is computed."""
    branches = num_branches(plan.guidance)
    return sum(step.num_passes(branches) for step in called_steps(plan))


def called_steps(plan: Plan) -> list[Step]:
    """The steps that call the networks: all, or every timestep once where the sampler skips repeats."""
    return list((without_repeats(plan) if load_sampler(plan.sampler).SKIPS_REPEATS else plan).steps)


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


def _latency(bench: Bench, pipeline: Any, plan: Plan, original: Plan) -> dict[str, Any]:
    """One image end to end through each, in turn in one run: the ratio is what can be compared between machines.

    Returns:
        a cost's row, with `ratio_quartiles`, `denoising_ratio` (of the networks' share alone) and `stages`: by system
        the shares of encoding, denoising, decoding and the rest in the original's time, which sum to the system's own.
        Milliseconds only where the U-Net is as wide as Stable Diffusion's.
    """
    example, records = bench.examples[:1], dict[str, list[dict[str, float]]]()

    def translator(system: str, which: Any, plan: Plan) -> Callable[[], None]:
        def run() -> None:
            with timing.record() as seconds:
                translate(bench.task, which, example, plan, at_depth=bench.at_depth(which))
            records.setdefault(system, []).append(seconds)

        return run

    full = bench.model.pipeline
    with timing.part("latency"):
        measured = measure_ratio(
            translator("original", full, original),
            translator("compressed", pipeline, plan),
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
