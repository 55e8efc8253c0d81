"""Are optimised timesteps still worth it with DPM-Solver++ 2M in place of DDIM"""

from ..config import Config
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..stages._lab import Lab, difference, series, verdicts
from ..types import Chart, Study

SOURCE = "Kim et al., Diffusion Model Compression for Image-to-Image Translation, ACCV 2024, Sec. S10"


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
    """Search gamma for both samplers; both are deterministic and follow one curve, so one reference serves them."""
    lab = Lab(
        config,
        recipe,
        run_dir,
        num_searched=num_searched,
        num_evaluated=num_evaluated,
        unfitted="compares DDIM with DPM-Solver++ 2M",
    )
    arms = {sampler: lab.arm(sampler=sampler) for sampler in ("ddim", "dpm_solver")}
    against = (arms["ddim"], reference_steps)
    rows = []
    for steps in num_inference_steps:
        found = {sampler: arm.compare_searched(steps, against) for sampler, arm in arms.items()}
        for sampler, other in zip(arms, reversed(arms), strict=True):
            own, others = found[sampler], found[other]
            rows.append(
                {
                    "steps": steps,
                    "sampler": sampler,
                    **own.columns,
                    "uniform over the other's (dB)": difference(own.uniform, others.uniform, config.seed),
                    "searched over the other's (dB)": difference(own.searched, others.searched, config.seed),
                }
            )
    by_sampler = {sampler: [row for row in rows if row["sampler"] == sampler] for sampler in arms}
    gains = {sampler: verdicts([row["gain (dB)"] for row in of]) for sampler, of in by_sampler.items()}
    against_ddim = verdicts([row["searched over the other's (dB)"] for row in by_sampler["dpm_solver"]])
    return Study(
        rows,
        [
            Chart(
                "steps",
                "PSNR (dB)",
                [
                    series(f"{sampler}, {list_}", of, "steps", f"{list_} (dB)")
                    for sampler, of in by_sampler.items()
                    for list_ in ("uniform", "searched")
                ],
            ),
            Chart(
                "steps",
                "gain (dB)",
                [series(sampler, of, "steps", "gain (dB)") for sampler, of in by_sampler.items()],
            ),
        ],
        f"The searched list against uniform steps: {gains['ddim']} step counts with DDIM, {gains['dpm_solver']} with "
        f"DPM-Solver++ 2M. DPM-Solver++ against DDIM, each with its searched list: {against_ddim}.",
        [f"PSNR to {reference_steps} uniform steps of DDIM by the same model.", lab.images_note()],
    )
