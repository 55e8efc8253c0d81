"""Find the shallowest U-Net that still meets the quality thresholds (Alg. 1)"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ..bench.bench import Bench
from ..bench.early_stop import Judged, Positions, judge
from ..bench.thresholds import Threshold, parse_thresholds
from ..config import Config
from ..console import say
from ..core.cut import Cut
from ..core.depth_search import FullModelFailsError, cut_search
from ..costs.parameters import count_parameters
from ..errors import IdcError
from ..metrics._metric import in_words, perfect_ones
from ..runs import files
from ..runs.ranks import agreed
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..runs.trace import Trace
from ..types import CutRequest
from ._run import provenance
from ._values import bench_for, cut_request, plan_of, uniform_plan

Row = dict[str, Any]
SHARED = True  # among the processes of devices=N


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Probe the prune method's candidates, the whole model first, and hand on the last one that holds.

    Writes trace.jsonl (a row per probed candidate) and metrics.json.

    Raises:
        IdcError: the whole model itself misses a threshold.
    """
    recipe, settings = recipes[0], config.depth_search
    thresholds = parse_thresholds(settings.thresholds)
    bench = bench_for(config, recipe, split="search", num_samples=settings.num_samples)
    request = cut_request(config, recipe, bench, settings.num_samples)
    given = bench.model.chosen(config.depth) if config.depth is not None else None
    if given is None:
        given = agreed(lambda: bench.model.given(request), "the cut that is given")
    if given is not None:
        name = bench.model.words(given) if config.depth is None else f"depth {config.depth}"
        say(f"{name} given, nothing searched: {_size(bench, given)}")
        derive = partial(_derive, config, recipe, bench, run_dir, given, request, searched=False)
        return [agreed(derive, "the recipe")]

    # 1. what the whole model makes at the reference steps, once it is asked for
    original = uniform_plan(config, bench.model.process, config.num_inference_steps)
    plan = uniform_plan(config, bench.model.process, settings.num_inference_steps)
    trace, confidence = run_dir.trace(), None if settings.whole_curve else config.early_stop

    def references(positions: Positions) -> Tensor:
        return bench.references(None, original, "full model", positions)

    # 2. Alg. 1 over candidates that are evaluated once and then read from the trace
    whole, *smaller = agreed(lambda: bench.model.candidates(request), "the candidates")
    least = settings.min_depth  # of cuts by depth; others have none
    candidates = [whole, *(cut for cut in smaller if cut.choice.get("depth", least) >= least)]

    pictures: dict[Cut, dict[int, Tensor]] = {}  # of the last candidate that held and the first that failed

    def passes(cut: Cut) -> bool:
        row = trace.find(**_key(cut))
        if row is None:
            began = time.perf_counter()
            pipeline = bench.model.calibrated(cut, request)[0]

            def make(positions: Positions) -> Tensor:
                return bench.images(pipeline, plan, bench.model.words(cut), positions)

            itself = cut == candidates[0] and plan == original  # the reference: never sampled twice
            judged = judge(bench, references if itself else make, references, thresholds, confidence)
            if all(row["passed"] for row in trace.rows):
                if not judged.missed:
                    pictures.clear()
                pictures[cut] = judged.images
            row = trace.append(_row(bench, cut, judged, began))
        say(_line(bench, cut, row, thresholds))
        return bool(row["passed"])

    try:
        cut, probes = cut_search(passes, candidates, whole_curve=settings.whole_curve)
    except FullModelFailsError:
        failing = "; ".join(_found(trace, candidates[0])["missed"])
        raise IdcError(
            f"the full model already fails, so no depth can be chosen: {failing}; lower the bound in "
            "depth_search.thresholds or use a better model"
        ) from None

    # 3. the recipe; what a timestep search, or a fine-tuning one level deeper, would sample again is kept
    made = agreed(lambda: _derive(config, recipe, bench, run_dir, cut, request), "the recipe")
    for sampled, images in pictures.items() if not made.weights else ():
        replaced = None if bench.model.is_whole(sampled) else sampled
        bench.keep(dataclasses.replace(made, cut=replaced, weights={}), plan, images)
    if cut == candidates[0]:
        next_one = bench.model.words(candidates[1]) if len(candidates) > 1 else "nothing smaller"
        say(f"no level can go: {next_one} misses a threshold; the recipe keeps the full model")
    else:
        say(f"{bench.model.words(cut)}: {_size(bench, cut)}")
    files.write_json(
        run_dir / "metrics.json",
        {
            "version": 1,
            "stage": "depth_search",
            "task": recipe.task,
            "model": recipe.model["name"],
            **_key(cut),
            "full_depth": bench.model.full_depth,
            "num_images": len(bench.examples),
            "num_judged": _found(trace, cut)["num_images"],
            "thresholds": [vars(threshold) for threshold in thresholds],
            "probed": [probed.choice.get("depth") or probed.to_json() for probed, _ in probes],
            "metrics": _found(trace, cut)["metrics"],
            "params": _found(trace, cut)["params"],
            "params_full": trace.rows[0]["params"],
        },
    )
    return [made]


def _key(cut: Cut) -> Row:
    """How the trace names a candidate: by its method's own words, {"depth": 9}, tables left out."""
    return {k: v for k, v in cut.choice.items() if not isinstance(v, dict)} or {"cut": cut.method}


def _found(trace: Trace, cut: Cut) -> Row:
    row = trace.find(**_key(cut))
    assert row is not None
    return row


def _row(bench: Bench, cut: Cut, judged: Judged, began: float) -> Row:
    """A candidate's row of the trace; `began` is when its sampling started."""
    return {
        **_key(cut),
        "passed": not judged.missed,
        "metrics": {name: value.value for name, value in judged.values.items()},
        **perfect_ones(judged.values),
        "notes": {name: value.note for name, value in judged.values.items() if value.note},
        "missed": judged.missed,
        **judged.counts(bench),
        "params": count_parameters(bench.model.at(cut).unet)[0],
        "evaluation_seconds": round(time.perf_counter() - began, 3),
    }


def _line(bench: Bench, cut: Cut, row: Row, thresholds: list[Threshold]) -> str:
    found = {
        t.metric: in_words(row["metrics"][t.metric], perfect=t.metric in row.get("perfect", ())) for t in thresholds
    }
    cells = [f"{t.metric} {found[t.metric]} (want {t.direction} {t.bound:g})" for t in thresholds]
    depth, full = cut.choice.get("depth"), bench.model.full_depth
    name = bench.model.words(cut) if depth is None else f"depth {depth:>2}/{full}"
    verdict = "holds" if row["passed"] else "fails"
    few = f" beyond doubt on {row['num_images']} images" if row["num_skipped"] else ""
    return f"  {name}  {'  '.join(cells)}  {verdict}{few}"


def _size(bench: Bench, cut: Cut) -> str:
    """The U-Net's size after a cut, by the files' count and by the paper's."""
    full, kept = (count_parameters(pipeline.unet) for pipeline in (bench.model.pipeline, bench.model.at(cut)))
    return (
        f"{kept[0]:,} parameters of the U-Net ({kept[0] / full[0]:.1%}); by the paper's count, without time embedding, "
        f"{kept[1]:,} ({kept[1] / full[1]:.1%})"
    )


def _derive(
    config: Config,
    recipe: Recipe,
    bench: Bench,
    run_dir: RunDir,
    cut: Cut,
    request: CutRequest,
    *,
    searched: bool = True,
) -> Recipe:
    """The recipe with the cut, and with the weights that were calibrated for it; its plan stays as it was."""
    pipeline, names = bench.model.calibrated(cut, request)
    weights = {}
    for component in names:
        path = run_dir / f"{component}.safetensors"
        files.write_bytes(path, save({k: v.contiguous() for k, v in getattr(pipeline, component).state_dict().items()}))
        weights[component] = {"file": path.name, "sha256": files.file_digest(path)}
    seen = bench.photographs if searched or names else {}
    entry = provenance("depth_search", config, run_dir, seen, **_key(cut))
    return recipe.derive(
        entry,
        model=bench.model.source,
        cut=None if bench.model.is_whole(cut) else cut,
        plan=plan_of(config, recipe, bench.model.process),
        **({"weights": weights} if weights else {}),
    )
