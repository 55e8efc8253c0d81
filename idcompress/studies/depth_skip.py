"""Does the best gamma change when the U-Net is cut"""

from ..config import Config
from ..errors import IdcError
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..stages._lab import Lab, check_gamma, difference, series, verdicts
from ..types import Chart, Study

SOURCE = "Kim et al., Diffusion Model Compression for Image-to-Image Translation, ACCV 2024, Sec. S3, Tab. S2"


def run(
    config: Config,
    recipe: Recipe,
    run_dir: RunDir,
    *,
    num_inference_steps: list[int],
    num_searched: int = 4,
    num_evaluated: int = 12,
    reference_steps: int = 50,
) -> Study:
    """Search gamma for the full and for the cut model, and try each one's list on the other.

    The cut model has the recipe's depth, or the one that Alg. 1 finds.

    Raises:
        IdcError: no level can go, or another strategy than gamma was chosen.
    """
    check_gamma(config)
    lab = Lab(config, recipe, run_dir, num_searched=num_searched, num_evaluated=num_evaluated)
    depth = recipe.depth or lab.shallowest(reference_steps)
    if depth == lab.model.full_depth:
        raise IdcError(f"study=depth_skip wants a depth below {depth}; give one by depth=N or a lower threshold")
    arms = {"full depth": lab.full(), f"depth {depth}": lab.arm(depth)}
    rows = []
    for steps in num_inference_steps:
        found = {name: arm.compare_searched(steps, (arm, reference_steps)) for name, arm in arms.items()}
        for (name, arm), other in zip(arms.items(), reversed(arms), strict=True):
            others = arm.measure("evaluate", found[other].timesteps, against=(arm, reference_steps))["psnr"]
            rows.append(
                {
                    "steps": steps,
                    "model": name,
                    **found[name].columns,
                    "other model's list (dB)": others.value,
                    "own over other's (dB)": difference(found[name].searched, others, config.seed),
                }
            )
    own_gains = [row["own over other's (dB)"] for row in rows]
    pairs = [
        f"{full['gamma']:.3g} and {cut['gamma']:.3g} at {full['steps']} steps"
        for full, cut in zip(rows[::2], rows[1::2], strict=True)
    ]
    by_model = {name: [row for row in rows if row["model"] == name] for name in arms}
    return Study(
        rows,
        [
            Chart("steps", column, [series(name, found, "steps", column) for name, found in by_model.items()])
            for column in ("gamma", "gain (dB)")
        ],
        f"Gamma at full depth and at depth {depth}: {', '.join(pairs)}. A model's own list against the other's: "
        f"{verdicts(own_gains)} cases.",
        [f"PSNR to the same model's {reference_steps} uniform steps.", lab.images_note()],
    )
