"""Does it matter whether the U-Net is cut before or after the timesteps are optimised"""

from typing import Any

from ..config import Config
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..stages._lab import Arm, Lab, Over, difference, series, verdicts
from ..types import Chart, Study

SOURCE = "Kim et al., Diffusion Model Compression for Image-to-Image Translation, ACCV 2024, Sec. 3 and Tab. S2"
CUT_FIRST, CUT_LAST = "depth, timesteps", "timesteps, depth"
OVER = "cutting first over it (dB)"


def run(
    config: Config,
    recipe: Recipe,
    run_dir: RunDir,
    *,
    num_inference_steps: list[int],
    num_searched: int = 4,
    num_evaluated: int = 12,
    reference_steps: int = 20,
) -> Study:
    """Both orders from the full model; either second step works on what the first one left.

    The depth search compares the cut with the full model over the same timesteps: uniform ones where it comes first.
    Beside both stands the full model at as many uniform steps as the multiply-accumulates of the first order pay for.
    """
    lab = Lab(config, recipe, run_dir, num_searched=num_searched, num_evaluated=num_evaluated)
    full, rows = lab.full(), list[dict[str, Any]]()
    for steps in num_inference_steps:
        # 1. depth first: timesteps for the cut model
        cut = lab.arm(lab.shallowest(reference_steps))
        after = cut.search(steps, (cut, reference_steps))
        # 2. timesteps first: a depth for the full model's list
        before = full.search(steps, (full, reference_steps))
        plans: dict[str, tuple[Arm, Over, object]] = {
            CUT_FIRST: (cut, after.timesteps, after.details.get("gamma")),
            CUT_LAST: (lab.arm(lab.shallowest(before.timesteps)), before.timesteps, before.details.get("gamma")),
        }
        # 3. neither: fewer uniform steps
        affordable = cut.affordable(steps, full)
        for sampler in ("ddim", "dpm_solver"):
            plans[f"neither, {sampler}"] = (lab.full(sampler=sampler), affordable, None)
        # 4. all against the original, on images that no search has seen
        values = {
            plan: arm.measure("evaluate", over, against=(full, reference_steps))["psnr"]
            for plan, (arm, over, _) in plans.items()
        }
        for plan, (arm, over, gamma) in plans.items():
            count = len(arm.plan(over))
            rows.append(
                {
                    "plan": plan,
                    "depth": arm.recipe.depth or lab.model.full_depth,
                    "parameters": int(arm.costs[1]),
                    "steps": count,
                    "gamma": gamma,
                    "GMACs": count * arm.costs[0],
                    "PSNR (dB)": values[plan].value,
                    OVER: None if plan == CUT_FIRST else difference(values[CUT_FIRST], values[plan], config.seed),
                }
            )
    by_plan = {plan: [row for row in rows if row["plan"] == plan] for plan in plans}
    same = sum(a["depth"] == b["depth"] for a, b in zip(by_plan[CUT_FIRST], by_plan[CUT_LAST], strict=True))
    plain = [row[OVER] for plan in by_plan if plan.startswith("neither") for row in by_plan[plan]]
    return Study(
        rows,
        [
            Chart("GMACs", "PSNR (dB)", [series(plan, of, "GMACs", "PSNR (dB)") for plan, of in by_plan.items()]),
        ],
        f"Both orders end at the same depth at {same} of {len(num_inference_steps)} step counts. Cutting first on "
        f"unseen images, against optimising first: {verdicts([row[OVER] for row in by_plan[CUT_LAST]])}; against the "
        f"full model at as many multiply-accumulates: {verdicts(plain)}.",
        [
            f"PSNR to the full model's {reference_steps} uniform steps.",
            "GMACs: of all steps for one image, without guidance; parameters by the paper's rule, of all networks.",
            lab.images_note(),
        ],
    )
