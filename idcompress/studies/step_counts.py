"""Searched timesteps, uniform ones and DPM-Solver++ 2M over the number of steps"""

import math

from ..config import Config
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..stages._lab import Lab, difference, series, verdicts
from ..types import Chart, Study

SOURCE = "Kim et al., Diffusion Model Compression for Image-to-Image Translation, ACCV 2024, Fig. 5 (b-d)"


def run(
    config: Config,
    recipe: Recipe,
    run_dir: RunDir,
    *,
    num_inference_steps: list[int],
    num_searched: int = 8,
    num_evaluated: int = 16,
    reference_steps: int = 50,
) -> Study:
    """Search a list for every number of steps; set it beside as many uniform steps by both deterministic samplers.

    With sampler=fitted both lists have fitted numbers.

    All of them come close, or not, to one result: the full model's, deterministic, at many uniform steps.
    """
    lab = Lab(config, recipe, run_dir, num_searched=num_searched, num_evaluated=num_evaluated)
    # Fitted numbers, too, come close to the many DDIM steps; any other sampler is not this study's subject.
    own = config.sampler if config.sampler != lab.many else "ddim"
    model, solver = lab.arm(sampler=own), lab.arm(sampler="dpm_solver")
    against = (lab.full(sampler="ddim"), reference_steps)
    rows = []
    for steps in num_inference_steps:
        found = model.compare_searched(steps, against)
        solved = solver.measure("evaluate", steps, against=against)["psnr"]
        rows.append(
            {
                "steps": steps,
                **found.columns,
                "DPM-Solver++ 2M, uniform (dB)": solved.value,
                "gain over DPM-Solver++ 2M (dB)": difference(found.searched, solved, config.seed),
            }
        )
    limit = solver.measure("evaluate", reference_steps, against=against)["psnr"]
    words = "DDIM" if own == "ddim" else own
    lines = {
        f"{config.timesteps['name']}, {words}": "searched (dB)",
        f"uniform, {words}": "uniform (dB)",
        "uniform, DPM-Solver++ 2M": "DPM-Solver++ 2M, uniform (dB)",
    }
    gains = {"uniform steps": "gain (dB)", "DPM-Solver++ 2M": "gain over DPM-Solver++ 2M (dB)"}
    judged = [f"{verdicts([row[column] for row in rows])} against {name}" for name, column in gains.items()]
    return Study(
        rows,
        [
            Chart(
                "steps",
                f"PSNR to {reference_steps} steps (dB)",
                [series(label, rows, "steps", column) for label, column in lines.items()],
            ),
            Chart(
                "steps",
                "gain of the searched list (dB)",
                [series(f"over {name}", rows, "steps", column) for name, column in gains.items()],
            ),
        ],
        f"Over {min(num_inference_steps)} to {max(num_inference_steps)} steps the searched list is {judged[0]}, and "
        f"{judged[1]}, at equal numbers of steps.",
        [
            f"PSNR to {reference_steps} uniform steps of the full model by DDIM, which as many by DPM-Solver++ 2M meet "
            f"to {limit.value or math.inf:.1f} dB; equal numbers of steps are equal costs.",
            lab.images_note(),
        ],
    )
