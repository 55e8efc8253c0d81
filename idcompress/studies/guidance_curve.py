"""What an edit keeps against what it changes, over the image guidance, original against compressed"""

from typing import Any

from ..config import Config
from ..errors import IdcError
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..stages._lab import Lab, Over, difference, series, verdicts
from ..tasks._task import tasks_with
from ..types import Chart, Study

SOURCE = "Kim et al., Diffusion Model Compression for Image-to-Image Translation, ACCV 2024, Fig. 5 (a)"


def run(
    config: Config,
    recipe: Recipe,
    run_dir: RunDir,
    *,
    scales: list[float],
    metrics: list[str],
    num_inference_steps: int = 10,
    num_searched: int = 8,
    num_evaluated: int = 16,
    reference_steps: int = 50,
) -> Study:
    """Draw one metric over the other, a point per scale, for the original, the cut and the compressed model.

    The compressed model is the recipe's; what a recipe lacks, depth or timesteps, is searched once at the configured
    guidance; numbers that its sampler wants are fitted at every scale. Beside it stands the original at as many uniform
    steps as its multiply-accumulates pay for.

    Raises:
        IdcError: the task has no image guidance, there are not two metrics, or one has nothing to compare with.
    """
    if "image_guidance_scale" not in config.guidance():
        others = tasks_with(lambda task: "image_guidance_scale" in task.guidance_scales)
        raise IdcError(f"study=guidance_curve wants image guidance; task={config.task.name} has none; want {others}")
    if len(metrics) != 2:
        raise IdcError(f"study.metrics must be two, the horizontal one first, got {metrics}")
    lab = Lab(config, recipe, run_dir, num_searched=num_searched, num_evaluated=num_evaluated)
    judges = {name: lab.benches["evaluate"].metric(name) for name in metrics}

    # 1. the compressed model, and what else its cost buys
    depth = recipe.depth or lab.shallowest(reference_steps)
    cut, full = lab.arm(depth), lab.full()
    timesteps = list(recipe.timesteps or cut.search(num_inference_steps, (cut, reference_steps)).timesteps)
    affordable = cut.affordable(timesteps, full)
    compressed = f"compressed: depth {depth}, {len(timesteps)} steps"
    systems: dict[str, tuple[int, str, Over]] = {
        compressed: (depth, config.sampler, timesteps),
        f"depth {depth}, {reference_steps} uniform steps": (depth, lab.many, reference_steps),
        f"original, {reference_steps} uniform steps": (lab.model.full_depth, lab.many, reference_steps),
        f"original, {affordable} by ddim": (lab.model.full_depth, "ddim", affordable),
        f"original, {affordable} by dpm_solver": (lab.model.full_depth, "dpm_solver", affordable),
    }

    # 2. every system at every scale
    rows: list[dict[str, Any]] = []
    for scale in scales:
        target = (lab.full(sampler=lab.many, image_guidance_scale=scale), reference_steps)
        arms = {s: lab.arm(at, sampler=by, image_guidance_scale=scale) for s, (at, by, _) in systems.items()}
        values = {
            system: arm.measure("evaluate", arm.ready(systems[system][2], target), metrics)
            for system, arm in arms.items()
        }
        for system, found in values.items():
            row = {"image guidance": scale, "system": system}
            for name, judge in judges.items():
                if found[name].value is None:
                    raise IdcError(f"study.metrics: {name}: {found[name].note}")
                own = difference(
                    values[compressed][name], found[name], config.seed, higher_is_better=judge.higher_is_better
                )
                row |= {name: found[name].value, f"compressed over it, {name}": None if system == compressed else own}
            rows.append(row)
    across, up = [f"{name} ({judge.unit})" if judge.unit else name for name, judge in judges.items()]
    by_system = {system: [row for row in rows if row["system"] == system] for system in systems}
    words = [
        f"beside {system}: "
        + ", ".join(f"{m} {verdicts([row[f'compressed over it, {m}'] for row in of])}" for m in metrics)
        for system, of in by_system.items()
        if system.startswith("original")
    ]
    return Study(
        rows,
        [Chart(across, up, [series(system, of, *metrics) for system, of in by_system.items()])],
        f"Over image guidance {min(scales):g} to {max(scales):g} {compressed}; {'; '.join(words)}.",
        [
            f"{'; '.join(f'{name}: {judge.compares}' for name, judge in judges.items())}. A point per image "
            f"guidance, joined in the order {', '.join(map('{:g}'.format, scales))}; text guidance "
            f"{config.guidance()['guidance_scale']:g}.",
            f"Timesteps {timesteps}; the original's {affordable} steps cost as many multiply-accumulates.",
            lab.images_note(),
        ],
    )
