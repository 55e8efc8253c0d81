"""Which gamma suits which guidance, at several step counts"""

from ..config import Config
from ..errors import IdcError
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..stages._lab import Lab, check_gamma, series, verdicts
from ..types import Chart, Study

SOURCE = "Kim et al., Diffusion Model Compression for Image-to-Image Translation, ACCV 2024, Tab. S1"


def run(
    config: Config,
    recipe: Recipe,
    run_dir: RunDir,
    *,
    scales: list[float],
    num_inference_steps: list[int],
    num_searched: int = 6,
    num_evaluated: int = 12,
    reference_steps: int = 50,
) -> Study:
    """Search gamma at every scale of the image guidance, or of the text guidance where a task has no other.

    Raises:
        IdcError: the task samples without guidance, or another strategy than gamma was chosen.
    """
    check_gamma(config)
    name = next((n for n in ("image_guidance_scale", "guidance_scale") if n in config.guidance()), None)
    if name is None:
        raise IdcError(f"study=guidance wants a task with guidance; task={config.task.name} samples without")
    lab = Lab(config, recipe, run_dir, num_searched=num_searched, num_evaluated=num_evaluated)
    rows = []
    for steps in num_inference_steps:
        for scale in scales:
            arm = lab.arm(**{name: scale})
            rows.append({"steps": steps, name: scale, **arm.compare_searched(steps, (arm, reference_steps)).columns})
    by_steps = {steps: [row for row in rows if row["steps"] == steps] for steps in num_inference_steps}
    trends = [f"{_trend([row['gamma'] for row in found])} at {steps} steps" for steps, found in by_steps.items()]
    return Study(
        rows,
        [
            Chart(name, column, [series(f"{steps} steps", found, name, column) for steps, found in by_steps.items()])
            for column in ("gamma", "gain (dB)")
        ],
        f"Over {name} {min(scales):g} to {max(scales):g} gamma {', '.join(trends)}. The searched list "
        f"against as many uniform steps: {verdicts([row['gain (dB)'] for row in rows])} settings.",
        [f"PSNR to the same model's {reference_steps} uniform steps at the same guidance.", lab.images_note()],
    )


def _trend(gammas: list[float]) -> str:
    if len(set(gammas)) == 1:
        return f"stays at {gammas[0]:.3g}"
    if gammas in (sorted(gammas), sorted(gammas, reverse=True)):
        return f"{'rises' if gammas[0] < gammas[-1] else 'falls'} from {gammas[0]:.3g} to {gammas[-1]:.3g}"
    return f"has no trend ({min(gammas):.3g} to {max(gammas):.3g})"
