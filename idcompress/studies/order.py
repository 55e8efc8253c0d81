"""Does it matter whether the U-Net is cut before or after the timesteps are optimised"""

from typing import Any

from ..artifacts.recipe import Recipe
from ..artifacts.run_dir import RunDir
from ..config import Config
from ..metrics.parameters import count_parameters
from ..types import Chart, Study
from ._base import Lab, difference, series, verdicts

SOURCE = "Kim et al., Diffusion Model Compression for Image-to-Image Translation, ACCV 2024, Sec. 3 and Tab. S2"
ORDERS = ("depth, timesteps", "timesteps, depth")


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
    """Both orders from the full model; either second step works on what the first one left.

    The depth search compares the cut with the full model over the same timesteps: uniform ones where it comes first.
    """
    lab = Lab(config, recipe, run_dir, num_searched=num_searched, num_evaluated=num_evaluated)
    full, rows = lab.full(), list[dict[str, Any]]()
    for steps in num_inference_steps:
        # 1. depth first: timesteps for the cut model
        cut = lab.arm(lab.shallowest(reference_steps))
        plans = [(cut, cut.search(steps, (cut, reference_steps)))]
        # 2. timesteps first: a depth for the full model's list
        schedule = full.search(steps, (full, reference_steps))
        plans.append((lab.arm(lab.shallowest(schedule.timesteps)), schedule))
        # 3. both against the original, on images that neither search has seen
        values = [
            arm.measure("evaluate", found.timesteps, against=(full, reference_steps))["psnr"] for arm, found in plans
        ]
        for order, (arm, found), value, other in zip(ORDERS, plans, values, reversed(values), strict=True):
            rows.append(
                {
                    "steps": steps,
                    "order": order,
                    "depth": arm.recipe.depth or lab.model.full_depth,
                    "parameters": count_parameters(arm.pipeline.unet)[0],
                    "gamma": found.details.get("gamma"),
                    "PSNR (dB)": value.value,
                    "over the other order (dB)": difference(value, other, config.seed),
                }
            )
    by_order = {order: [row for row in rows if row["order"] == order] for order in ORDERS}
    same = sum(a["depth"] == b["depth"] for a, b in zip(*by_order.values(), strict=True))
    return Study(
        rows,
        [
            Chart("steps", column, [series(order, found, "steps", column) for order, found in by_order.items()])
            for column in ("PSNR (dB)", "depth")
        ],
        f"Both orders end at the same depth at {same} of {len(num_inference_steps)} step counts; on unseen images "
        f"cutting first is {verdicts([row['over the other order (dB)'] for row in by_order[ORDERS[0]]])} against "
        "optimising first.",
        [f"PSNR to the full model's {reference_steps} uniform steps.", lab.images_note()],
    )
