"""Is stochastic sampling nearer to the truth than deterministic sampling"""

from typing import Any

from ..config import Config
from ..errors import IdcError
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..stages._lab import Lab, difference, series, verdicts
from ..types import Chart, Study

SOURCE = "Kim et al., Diffusion Model Compression for Image-to-Image Translation, ACCV 2024, Sec. S8"


def run(
    config: Config,
    recipe: Recipe,
    run_dir: RunDir,
    *,
    num_inference_steps: list[int],
    searched_steps: int = 10,
    num_searched: int = 4,
    num_evaluated: int = 16,
    reference_steps: int = 20,
) -> Study:
    """DDIM at eta 1 (ancestral) against eta 0, at uniform steps and with a list that was searched for each.

    By those of evaluate.metrics that judge a result by itself, its input or the truth.

    Raises:
        IdcError: all of them compare with the full model's result.
    """
    lab = Lab(
        config,
        recipe,
        run_dir,
        num_searched=num_searched,
        num_evaluated=num_evaluated,
        unfitted="compares DDIM with ancestral sampling",
    )
    bench = lab.benches["evaluate"]
    metrics = [
        name for name in bench.available(config.evaluate.metrics or []) if "references" not in bench.metric(name).needs
    ]
    if not metrics:
        raise IdcError("study=stochastic wants a metric in evaluate.metrics that compares with the truth or the input")
    arms = [lab.arm(sampler=sampler) for sampler in ("ddim", "ancestral")]
    lists = [arm.search(searched_steps, (arm, reference_steps)) for arm in arms]
    plans: dict[str, list[Any]] = {f"{steps}, uniform": [steps, steps] for steps in num_inference_steps}
    plans[f"{searched_steps}, searched"] = [schedule.timesteps for schedule in lists]
    rows = list[dict[str, Any]]()
    for plan, overs in plans.items():
        values = [arm.measure("evaluate", over, metrics) for arm, over in zip(arms, overs, strict=True)]
        for name in metrics:
            deterministic, stochastic = (found[name] for found in values)
            better = difference(
                stochastic, deterministic, config.seed, higher_is_better=bench.metric(name).higher_is_better
            )
            rows.append(
                {
                    "steps": plan,
                    "metric": name,
                    "deterministic": deterministic.value,
                    "stochastic": stochastic.value,
                    "stochastic over deterministic": better,
                }
            )
    by_metric = {name: [row for row in rows if row["metric"] == name] for name in metrics}
    judged = {name: [row["stochastic over deterministic"] for row in of] for name, of in by_metric.items()}
    differing = [name for name, differences in judged.items() if any(differences)]
    words = [f"{name} {verdicts(judged[name])}" for name in differing]
    gammas = [schedule.details.get("gamma") for schedule in lists]
    return Study(
        rows,
        [
            Chart(
                "steps", name, [series(how, by_metric[name], "steps", how) for how in ("deterministic", "stochastic")]
            )
            for name in differing or metrics
        ],
        f"Stochastic against deterministic sampling: {', '.join(words) or 'no gain'}.",
        [
            f"Lists searched by PSNR to the same sampler's {reference_steps} uniform steps with the same noise: gamma "
            f"{gammas[0]} deterministic, {gammas[1]} stochastic.",
            lab.images_note(),
        ],
    )
