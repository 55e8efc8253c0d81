"""Find the best plan under a budget: timesteps, levels computed at each, what is held, and fitted numbers"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from ..adapters.unet import depth as depth_of
from ..bench.bench import Bench
from ..bench.costs import Work
from ..bench.planning import Budget, Ceiling, Fits, Scores, words
from ..bench.selection import choose_photographs
from ..bench.translate import load_sampler
from ..config import Config
from ..console import say
from ..core.plan import Plan
from ..core.plan_search import Menu
from ..errors import IdcError
from ..images.photo_sets import PhotographSet, Subset
from ..metrics._metric import in_words
from ..runs import files
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ._run import provenance, with_depth
from ._values import bench_for, data_of, fit_settings, uniform_plan

FINALISTS = 5  # that are scored again on images of their own
# Restrictions of the whole space, whose best plans a wider search begins with, so that it does not lose to them.
PEERS: tuple[dict[str, Any], ...] = (
    {"menu": ["timesteps"], "patterns": ["full"], "samplers": ["ddim"], "fills": ["zero"]},
    {"menu": [], "patterns": ["every_2nd", "every_3rd"], "lists": ["uniform"], "samplers": ["ddim"], "fills": ["hold"]},
    {"menu": [], "patterns": ["one_depth"], "lists": ["gamma"], "samplers": ["ddim"], "fills": ["zero"]},
)


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Search a plan for every budget of plan.macs; one recipe each.

    Writes trace.jsonl (a row per look at a plan) and metrics.json.
    """
    recipe = with_depth(recipes[0], config)
    fitted, searched, validated = _benches(config, recipe)
    recipe = recipe.derive_model(fitted.model.source)
    process, pipeline, settings = fitted.model.process, fitted.model.for_recipe(recipe), config.plan
    menu = _menu(config, fitted, pipeline)

    # 1. the reference: the full model's many steps, as states on the images of the fit, as pictures on the others
    many = dataclasses.replace(uniform_plan(config, process, config.num_inference_steps), sampler="ddim")
    what = f"{len(many)}-step reference"
    fits = Fits(
        fitted, pipeline, fit_settings(config), cache(lambda: fitted.reference_run(None, many, what)), menu.depths
    )
    full = Work(fitted, fitted.model.pipeline).of(many)
    trace, work = run_dir.trace(), Work(fitted, pipeline)

    def scores(part: str, bench: Bench, ceiling: Ceiling) -> Scores:
        images = bench.references(None, many, what)
        confidence = config.early_stop if part == "search" else None
        return Scores(part, bench, fits, images, trace, settings.metric, work, full, ceiling, confidence)

    made: list[Recipe] = []
    rows: list[dict[str, Any]] = []
    looser: list[Plan] = []
    for macs in config.budgets():
        # 2. the search, which begins with what restrictions of it find
        say(f"budget {macs:g} of {len(many)} full steps")
        ceiling = Ceiling(settings.max_step_images)
        searching = scores("search", searched, ceiling)
        budget = Budget(macs, menu, tuple(settings.lists), config.guidance(), len(many))
        ceiling.most = settings.max_step_images // 2
        peers = [_best_of(peer, budget, searching) for peer in _peers(config)]
        ceiling.most = settings.max_step_images
        found = budget.best(searching, [*looser, *(plan for plan in peers if plan is not None)])
        # 3. the last choice, on images that no search has seen
        validating = scores("validation", validated, Ceiling(settings.max_step_images))
        best = max(found[:FINALISTS], key=validating.score)
        looser = [best]
        plan = fits.ready(best)
        # 4. the recipe
        value = searching.look(best, searching.stop.looks[-1])
        other = validating.look(best, validating.stop.looks[-1])
        numbers = {"searched": value, "validated": other}
        row = {
            "budget": macs,
            "macs_ratio": searching.ratio(best),
            "step_images": ceiling.spent + validating.ceiling.spent,
            "num_inference_steps": len(plan),
            "plan": plan.to_json(),
            **{f"{settings.metric}_{part}": number.value for part, number in numbers.items()},
        }
        say(
            f"macs {row['macs_ratio']:.4f}: {words(best)}; {settings.metric} "
            f"{in_words(value.value, perfect=value.perfect)} on the search's images, "
            f"{in_words(other.value, perfect=other.perfect)} on the last choice's; {row['step_images']:,} step-images"
        )
        rows.append(row)
        details: dict[str, Any] = {"macs_ratio": row["macs_ratio"], "budget": {"macs": macs}}
        if plan.coefficients is not None:
            key = recipe.fit_key(plan, process.to_json())
            details["fit"] = {"key": key, **dataclasses.asdict(fits.settings), "num_images": len(fitted.examples)}
        photographs = fitted.photographs | searched.photographs | validated.photographs
        entry = provenance("plan", config, run_dir, photographs, **details | {"sampler": plan.sampler})
        made.append(recipe.derive(entry, plan=plan, free_steps=False))
    files.write_json(
        run_dir / "metrics.json",
        {
            "version": 1,
            "stage": "plan",
            "task": recipe.task,
            "model": recipe.model["name"],
            "depth": recipe.depth,
            "metric": settings.metric,
            "reference_steps": len(many),
            "num_images": {"fitted": len(fitted.examples), "searched": len(searched.examples)}
            | {"validated": len(validated.examples)},
            **(rows[0] if len(rows) == 1 else {}),
            "plans": rows,
        },
    )
    return made


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


def _peers(config: Config) -> list[dict[str, Any]]:
    """The restrictions that the configured space has inside it, and is not itself."""
    plan = vars(config.plan)
    inside = [peer for peer in PEERS if all({*value} <= {*plan[name]} for name, value in peer.items())]
    return [peer for peer in inside if any({*value} != {*plan[name]} for name, value in peer.items())]


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
