"""Find the best plan under a budget: timesteps, levels computed at each, what is held, and fitted numbers"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

from ..adapters.unet import depth as depth_of
from ..bench.bench import Bench
from ..bench.certificate import Certifier
from ..bench.costs import Work
from ..bench.planning import Budget, Ceiling, Fits, Scores, words
from ..bench.selection import choose_photographs
from ..bench.spending import Bytes, Milliseconds, depth_within, weights_of
from ..bench.translate import load_sampler
from ..config import Config
from ..console import say, warn
from ..core.plan import Plan
from ..core.plan_search import Menu
from ..errors import IdcError
from ..images.photo_sets import PhotographSet, Subset
from ..metrics._metric import in_words
from ..report import plans as report
from ..report.figures import charts
from ..runs import files
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..runs.trace import Trace
from ._run import provenance, with_depth
from ._values import bench_for, data_of, fit_settings, uniform_plan

SHARED = True  # among the processes of devices=N
Bound = tuple[Callable[[Plan], float], float]  # what a plan takes of something, and the most that it may

FINALISTS = 5  # that are scored again on images of their own
PEERS_SHARE = 4  # a quarter of a search's step-images may go into what restrictions find
# Restrictions of the whole space, whose best plans a wider search begins with, so that it does not lose to them. The
# last one takes what the others leave of their share.
PEERS: dict[str, dict[str, Any]] = {
    "DeepCache": {
        "menu": [],
        "patterns": ["every_2nd", "every_3rd"],
        "lists": ["uniform"],
        "samplers": ["ddim"],
        "fills": ["hold"],
    },
    "the paper's plan, one depth on a gamma list": {
        "menu": [],
        "patterns": ["one_depth"],
        "lists": ["gamma"],
        "samplers": ["ddim"],
        "fills": ["zero"],
    },
    "a search of timesteps alone": {
        "menu": ["timesteps"],
        "patterns": ["full"],
        "samplers": ["ddim"],
        "fills": ["zero"],
    },
}


class _Search(NamedTuple):
    """A budget's search: what it found best on the images of the last choice, and what its restrictions found."""

    budget: Budget
    searching: Scores
    validating: Scores
    best: Plan
    peers: dict[str, Plan]


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Search a plan for every budget of plan.macs; one recipe each.

    Writes trace.jsonl (a row per look at a plan), metrics.json, and for certified plans plan.png and plan.svg.
    """
    recipe = with_depth(recipes[0], config)
    fitted, searched, validated = _benches(config, recipe)
    recipe = _stored(config, recipe.derive_model(fitted.model.source), fitted)
    process, pipeline, settings = fitted.model.process, fitted.model.for_recipe(recipe), config.plan
    menu = _menu(config, fitted, pipeline)
    photographs = fitted.photographs | searched.photographs | validated.photographs
    unseen = _unseen(config, recipe, photographs)

    # 1. the reference: the full model's many steps, as states on the images of the fit, as pictures on the others
    many = dataclasses.replace(uniform_plan(config, process, config.num_inference_steps), sampler="ddim")
    what = f"{len(many)}-step reference"
    fits = Fits(
        fitted, pipeline, fit_settings(config), cache(lambda: fitted.reference_run(None, many, what)), menu.depths
    )
    full = Work(fitted, fitted.model.pipeline)
    trace, work = run_dir.trace(), Work(fitted, pipeline)
    bounds = _bounds(config, fitted, pipeline, many, menu, trace)

    def scores(part: str, bench: Bench, ceiling: Ceiling) -> Scores:
        images = bench.references(None, many, what)
        confidence = config.early_stop if part == "search" else None
        return Scores(part, bench, fits, images, trace, settings.metric, work, full.of(many), ceiling, confidence)

    certifier = None
    if unseen is not None:
        certifier = Certifier(unseen, pipeline, many, trace, settings.metric, work, full, config.seed)
    searches: list[_Search] = []
    for macs in config.budgets():
        # 2. the search, which begins with what restrictions of it find, and the looser budget before it
        say(f"budget {macs:g} of {len(many)} full steps" if macs < math.inf else f"budget {settings.ms:g} ms")
        ceiling = Ceiling(settings.max_step_images)
        searching = scores("search", searched, ceiling)
        budget = Budget(macs, menu, tuple(settings.lists), config.guidance(), len(many), bounds)
        ceiling.most = settings.max_step_images // PEERS_SHARE
        tried = {name: _best_of(peer, budget, searching) for name, peer in _peers(config).items()}
        peers = {name: plan for name, plan in tried.items() if plan is not None}
        ceiling.most = settings.max_step_images
        found = budget.best(searching, [*(one.best for one in searches[-1:]), *peers.values()])
        # 3. the last choice, on images that no search has seen
        validating = scores("validation", validated, Ceiling(settings.max_step_images))
        best = max(found[:FINALISTS], key=validating.score)
        searches.append(_Search(budget, searching, validating, best, peers))
    made: list[Recipe] = []
    rows: list[dict[str, Any]] = []
    for one in searches:
        # 4. a tighter budget's plan where it is better, and what the plan is worth, on images that neither has seen
        affordable = [other.best for other in searches if one.budget.fits(one.searching, other.best)]
        best = max([one.best, *affordable], key=one.validating.score)
        plan, macs = fits.ready(best), one.budget.macs
        if best != one.best:
            say(f"budget {macs:g}: a tighter budget's plan is better than its own, and taken")
        row = _row(macs, best, plan, one.searching, one.validating, bounds)
        if certifier is not None:
            spent = macs if macs < math.inf else row["macs_ratio"]
            rivals = {name: fits.ready(peer) for name, peer in one.peers.items()}
            row["certificate"] = certifier.certificate(plan, spent, rivals)
            say(row["certificate"]["sentence"])
        rows.append(row)
        # 5. the recipe
        details: dict[str, Any] = {name: row[name] for name in ("macs_ratio", "budget", "certificate") if name in row}
        if plan.coefficients is not None:
            key = recipe.fit_key(plan, process.to_json())
            details["fit"] = {"key": key, **dataclasses.asdict(fits.settings), "num_images": len(fitted.examples)}
        entry = provenance("plan", config, run_dir, photographs, **details | {"sampler": plan.sampler})
        made.append(recipe.derive(entry, plan=plan, free_steps=False))
    images = {"fitted": fitted, "searched": searched, "validated": validated, "certified": unseen}
    value = {
        "version": 1,
        "stage": "plan",
        "task": recipe.task,
        "model": recipe.model["name"],
        "depth": recipe.depth,
        "metric": settings.metric,
        "reference_steps": len(many),
        "num_images": {name: len(bench.examples) for name, bench in images.items() if bench is not None},
        **(rows[0] if len(rows) == 1 else {}),
        "plans": rows,
    }
    files.write_json(run_dir / "metrics.json", value)
    drawn = report.charts(rows)
    if drawn:
        picture, drawing = charts(drawn, report.ALT)
        files.write_bytes(run_dir / "plan.png", picture.data)
        files.write_text(run_dir / "plan.svg", drawing)
    return made


def _row(
    macs: float, best: Plan, plan: Plan, searching: Scores, validating: Scores, bounds: Mapping[str, Bound]
) -> dict[str, Any]:
    """What metrics.json says of a budget's plan, and the same on the terminal.

    Args:
        best: as it was searched.
        plan: the same with its numbers.
    """
    spent, metric = (searching.ceiling, validating.ceiling), searching.metric
    value, other = (some.look(best, some.stop.looks[-1]) for some in (searching, validating))
    limits = {"macs": macs if macs < math.inf else None} | {key[5:]: most for key, (_, most) in bounds.items()}
    row = {
        "budget": limits,
        "macs_ratio": searching.ratio(best),
        **{key[5:]: of(best) for key, (of, _) in bounds.items()},
        "step_images": sum(some.spent for some in spent),
        "network_calls": sum(some.calls for some in spent),
        "num_inference_steps": len(plan),
        "plan": plan.to_json(),
        f"{metric}_searched": value.value,
        f"{metric}_validated": other.value,
    }
    say(
        f"macs {row['macs_ratio']:.4f}: {words(best)}; {metric} {in_words(value.value, perfect=value.perfect)} on the "
        f"search's images, {in_words(other.value, perfect=other.perfect)} on the last choice's; "
        f"{row['step_images']:,} step-images, {row['network_calls']:,} network calls"
    )
    return row


def _best_of(peer: dict[str, Any], budget: Budget, scores: Scores) -> Plan | None:
    """The best plan of a restriction; None where it has none that fits."""
    menu = dataclasses.replace(
        budget.menu,
        moves=tuple(peer["menu"]),
        patterns=tuple(peer["patterns"]),
        samplers=tuple(peer["samplers"]),
        fills=tuple(peer["fills"]),
    )
    lists = tuple(peer.get("lists", budget.lists))
    try:
        return dataclasses.replace(budget, menu=menu, lists=lists).best(scores)[0]
    except IdcError:
        return None


def _peers(config: Config) -> dict[str, dict[str, Any]]:
    """The restrictions that the configured space has inside it, and is not itself."""
    plan = vars(config.plan)
    inside = {n: peer for n, peer in PEERS.items() if all({*value} <= {*plan[name]} for name, value in peer.items())}
    return {n: peer for n, peer in inside.items() if any({*value} != {*plan[name]} for name, value in peer.items())}


def _stored(config: Config, recipe: Recipe, bench: Bench) -> Recipe:
    """The recipe, cut as deep as plan.bytes makes it: what is stored is what steps may compute.

    Raises:
        IdcError: not even one level is that small, or the recipe's own weights would have to be cut.
    """
    if config.plan.bytes is None:
        return recipe
    pipeline = bench.model.for_recipe(recipe)
    if bench.model.full_depth == 1:
        if weights_of(bench, pipeline) > config.plan.bytes:
            raise IdcError(f"plan.bytes={config.plan.bytes:g}: only prune=depth_skip can store less of this model")
        return recipe
    present = depth_of(pipeline.unet)
    depth = depth_within(bench, pipeline, present, config.plan.bytes)
    if depth == present:
        return recipe
    if recipe.weights:
        raise IdcError(
            f"plan.bytes={config.plan.bytes:g} stores depth {depth}, and the recipe's weights were fine-tuned at "
            f"{recipe.kept}; raise it, or begin with recipe=none"
        )
    say(f"stored: depth {depth} of {present}, as plan.bytes={config.plan.bytes:g} wants")
    return dataclasses.replace(recipe, cut=bench.model.chosen(depth))


def _bounds(config: Config, bench: Bench, pipeline: Any, many: Plan, menu: Menu, trace: Trace) -> dict[str, Bound]:
    """What else is bounded, by its key: how to count it, and the most that it may be."""
    bounds: dict[str, Bound] = {}
    if config.plan.ms is not None:
        moves = {name: name in menu.moves for name in ("passes", "refresh")}
        table = Milliseconds(bench, pipeline, many, trace, depths=menu.depths, **moves)
        bounds["plan.ms"] = (table.of, config.plan.ms)
    if config.plan.bytes is not None:
        bounds["plan.bytes"] = (Bytes(bench, pipeline, many, menu.depths).of, config.plan.bytes)
    return bounds


def _unseen(config: Config, recipe: Recipe, photographs: dict[str, str]) -> Bench | None:
    """What plans are certified on: images of photographs that are used for nothing else; None where there are none."""
    number = config.plan.num_certified
    if number == 0:
        return None
    seen = recipe.derive({"stage": "plan", "photographs": photographs})
    try:
        bench = bench_for(config, seen, split="evaluate", num_samples=number)
    except IdcError as error:
        warn(f"the plan will have no certificate: {error}")
        return None
    if {*photographs.values()} & {*bench.photographs.values()}:
        warn(f"the plan will have no certificate: data.split={config.data.split} gives it the search's photographs")
        return None
    return bench


def _menu(config: Config, bench: Bench, pipeline: Any) -> Menu:
    """What the configuration lets plans be made of.

    Raises:
        IdcError: a depth that is not stored, or an unknown sampler.
    """
    plan, model = config.plan, bench.model
    for sampler in plan.samplers:
        if load_sampler(sampler).STOCHASTIC:
            raise IdcError(f"plan.samplers: {sampler} draws noise at every step, which no plan can hold features over")
    depths: Sequence[int] = ()
    if model.full_depth > 1:
        stored = depth_of(pipeline.unet)
        given = plan.depths or sorted({round(stored * share) for share in (0.25, 0.4, 0.55, 0.7)} - {0, stored})
        if not all(1 <= depth < stored for depth in given):
            raise IdcError(f"plan.depths must lie between 1 and {stored - 1} for this model, got {plan.depths}")
        depths = sorted(given)
    return Menu(
        tuple(plan.menu),  # type: ignore[arg-type]
        tuple(pattern for pattern in plan.patterns if depths or pattern == "full"),  # type: ignore[misc]
        tuple(depths),
        tuple(plan.samplers),
        tuple(plan.fills),  # type: ignore[arg-type]
        tuple(plan.passes),  # type: ignore[arg-type]
        model.process.max_timestep,
    )


def _benches(config: Config, recipe: Recipe) -> list[Bench]:
    """What is fitted on, searched on and chosen on: different photographs, where there are three."""
    numbers = [config.plan.num_fitted, config.plan.num_searched, config.plan.num_validated]
    photos = choose_photographs(data_of(config), recipe, "search", sum(numbers))
    return [
        bench_for(config, recipe, photos=some, num_samples=number)
        for some, number in zip(_parted(photos, numbers), numbers, strict=True)
    ]


def _parted(photos: PhotographSet, numbers: Sequence[int]) -> list[PhotographSet]:
    """Photographs in as many parts, none larger than it has to be; what is left over goes to the search."""
    count = len(photos)
    if count < len(numbers):
        return [photos] * len(numbers)
    third = count // 3
    fitted, validated = min(third, numbers[0]), min(third, numbers[2])
    bounds = (0, fitted, count - validated, count)
    return [Subset(photos, range(first, last)) for first, last in pairwise(bounds)]
