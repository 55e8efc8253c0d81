"""Find the shallowest U-Net that still meets the quality thresholds (Alg. 1)"""

from __future__ import annotations

import time

from ..artifacts import files
from ..artifacts.recipe import Recipe
from ..artifacts.run_dir import RunDir
from ..config import Config
from ..console import say
from ..core.depth_search import FullModelFailsError, depth_search
from ..errors import IdcError
from ..metrics._base import number_or_equal
from ..metrics.parameters import count_parameters
from ._bench import Bench, open_bench
from ._run import provenance
from ._thresholds import Threshold, metrics_of, missed, parse_thresholds


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Probe depths from the deepest up and hand on the last one that holds.

    Writes trace.jsonl (a row per probed depth) and metrics.json.

    Raises:
        IdcError: the full model itself misses a threshold.
    """
    recipe = recipes[0]
    thresholds = parse_thresholds(config.depth_search.thresholds)
    bench = open_bench(config, recipe, split="search", num_samples=config.depth_search.num_samples)
    full = bench.model.full_depth
    if config.depth is not None:
        return [_fixed_depth(config, recipe, bench, run_dir)]

    # 1. what the full model makes at the reference steps
    references = bench.references(None, config.num_inference_steps, "full model")
    trace = run_dir.trace()

    # 2. Alg. 1 over depths that are evaluated once and then read from the trace
    def passes(depth: int) -> bool:
        row = trace.find(depth=depth) or trace.append(_evaluate(bench, depth, thresholds, references))
        say(_line(row, full, thresholds))
        return bool(row["passed"])

    search = config.depth_search
    try:
        depth, probes = depth_search(passes, full, min_depth=search.min_depth, whole_curve=search.whole_curve)
    except FullModelFailsError:
        row = trace.find(depth=full)
        assert row is not None
        raise IdcError(
            f"the full model already fails, so no depth can be chosen: {'; '.join(row['missed'])}; lower the bound in "
            "depth_search.thresholds or use a better model"
        ) from None

    # 3. the recipe
    row = trace.find(depth=depth)
    assert row is not None
    if depth == full:
        say(f"no level can go: depth {full - 1} misses a threshold; the recipe keeps the full model")
    else:
        say(f"depth {depth} of {full}: {_size(bench, depth)}")
    files.write_json(
        run_dir / "metrics.json",
        {
            "version": 1,
            "stage": "depth_search",
            "task": recipe.task,
            "model": recipe.model["name"],
            "depth": depth,
            "full_depth": full,
            "num_images": len(bench.examples),
            "thresholds": [vars(threshold) for threshold in thresholds],
            "probed": [probe.depth for probe in probes],
            "metrics": row["metrics"],
            "params": row["params"],
            "params_full": trace.rows[0]["params"],
        },
    )
    return [_derive(config, recipe, bench, run_dir, depth)]


def _evaluate(bench: Bench, depth: int, thresholds: list[Threshold], references: object) -> dict[str, object]:
    began = time.perf_counter()
    config = bench.config
    pipeline = bench.model.at(depth)
    full_steps = (
        depth == bench.model.full_depth and config.depth_search.num_inference_steps == config.num_inference_steps
    )
    outputs = (
        references
        if full_steps  # the reference itself: never sampled twice
        else bench.images(pipeline, bench.uniform(config.depth_search.num_inference_steps), f"depth {depth}")
    )
    values = bench.measure(metrics_of(thresholds), outputs, references)  # type: ignore[arg-type]
    failing = missed(thresholds, values)
    return {
        "depth": depth,
        "passed": not failing,
        "metrics": {name: value.value for name, value in values.items()},
        "notes": {name: value.note for name, value in values.items() if value.note},
        "missed": failing,
        "params": count_parameters(pipeline.unet)[0],
        "evaluation_seconds": round(time.perf_counter() - began, 3),
    }


def _line(row: dict[str, object], full: int, thresholds: list[Threshold]) -> str:
    metrics = row["metrics"]
    assert isinstance(metrics, dict)
    cells = []
    for threshold in thresholds:
        number = number_or_equal(metrics[threshold.metric])
        cells.append(f"{threshold.metric} {number} (want {threshold.direction} {threshold.bound:g})")
    mark = "holds" if row["passed"] else "fails"
    return f"  depth {row['depth']:>2}/{full}  {'  '.join(cells)}  {mark}"


def _fixed_depth(config: Config, recipe: Recipe, bench: Bench, run_dir: RunDir) -> Recipe:
    depth = config.depth
    assert depth is not None
    say(f"depth {depth} given, nothing searched: {_size(bench, depth)}")
    return _derive(config, recipe, bench, run_dir, depth)


def _size(bench: Bench, depth: int) -> str:
    """The U-Net's size at a depth, by the files' count and by the paper's."""
    full, cut = (count_parameters(pipeline.unet) for pipeline in (bench.model.pipeline, bench.model.at(depth)))
    return (
        f"{cut[0]:,} parameters of the U-Net ({cut[0] / full[0]:.1%}); by the paper's count, without time embedding, "
        f"{cut[1]:,} ({cut[1] / full[1]:.1%})"
    )


def _derive(config: Config, recipe: Recipe, bench: Bench, run_dir: RunDir, depth: int) -> Recipe:
    searched = config.depth is None
    entry = provenance("depth_search", config, run_dir, bench.photographs if searched else {}, depth=depth)
    return recipe.derive(
        entry,
        model=bench.model.source,
        depth=None if depth == bench.model.full_depth else depth,
        guidance=config.guidance(),
    )
