"""Time per image of three plans against the full model's many steps, in turn in one run, as `idc evaluate` measures it.

    python -m scripts.bench_plans ip2p                    the embedded model
    python -m scripts.full_size ip2p FOLDER               published size, random weights, for a GPU
    python -m scripts.bench_plans ip2p --model FOLDER

Each plan has ten steps: whole ones, every second one at depth 7, and every second one at depth 5 with deep levels and
side networks held. What counts is how far the time follows the multiply-accumulates. OUT gets a row after every plan.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from idcompress import cli
from idcompress.core.plan import Plan, Step
from idcompress.core.plan_search import patterned
from idcompress.runs import files
from idcompress.runs.recipe import Recipe
from idcompress.stages._run import code_state

TASKS = ("ip2p", "controlnet", "stablesr")
TIMESTEPS = range(999, 0, -100)  # ten trailing ones
PLANS = {
    "10 whole steps": patterned(TIMESTEPS, "full", None),
    "every second step at depth 7": patterned(TIMESTEPS, "every_2nd", 7),
    "every second step at depth 5, side networks held": tuple(
        replace(step, refresh=step.depth is None) for step in patterned(TIMESTEPS, "every_2nd", 5)
    ),
}
GUIDANCE = {"ip2p": {"guidance_scale": 7.5, "image_guidance_scale": 1.0}, "controlnet": {"guidance_scale": 9.0}}


def measured(task: str, folder: Path | None, steps: tuple[Step, ...], work: Path, more: list[str]) -> dict[str, Any]:
    """The share of a plan's multiply-accumulates and of its time in the full model's.

    Raises:
        SystemExit: the evaluation failed, with its own words.
    """
    plan = Plan(steps, fill="hold", guidance=GUIDANCE.get(task, {}))
    model = {"name": "tiny" if folder is None else "official", "path": None if folder is None else str(folder)}
    recipe = Recipe(task, model | {"repositories": None, "revision": None}, plan=plan, free_steps=False)
    work.mkdir()
    recipe.save(work / "recipe.json")
    words = [
        f"task={task}",
        f"model={model['name']}",
        f"recipe={work / 'recipe.json'}",
        f"hydra.run.dir={work / 'run'}",
    ]
    words += [] if folder is None else [f"model.path={folder}"]
    words += [f"{name}={scale}" for name, scale in plan.guidance.items()]
    words += ["evaluate.num_samples=1", "evaluate.metrics=[psnr]", "evaluate.alternatives=false", *more]
    cli.main(["evaluate", *words])
    costs = files.read_json(work / "run" / "metrics.json", "metrics")["metrics"]
    spent = {system: costs["gmacs"][system] * costs["network_calls"][system] for system in ("original", "compressed")}
    latency = costs["latency_ms"]
    found = {
        "multiply-accumulates": spent["compressed"] / spent["original"],
        "time [quartiles]": {"mean": latency["ratio"], "interval": latency["ratio_quartiles"]},
        "time of the networks": latency["denoising_ratio"],
        "full model, ms": latency["original"],
        "plan, ms": latency["compressed"],
    }
    return {name: value for name, value in found.items() if value is not None}  # no milliseconds of embedded models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument(
        "--model", type=Path, help="a pipeline folder of the published layout; the embedded model by default"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_plans.json"))
    parser.add_argument("--key", action="append", default=[], help="KEY=VALUE of idc evaluate, as dtype=bfloat16")
    options = parser.parse_args()
    folder = None if options.model is None else options.model.resolve()
    result: dict[str, Any] = {
        "version": 1,
        "command": f"python -m scripts.bench_plans {options.task}{'' if folder is None else ' --model FOLDER'}",
        "commit": code_state().rpartition("+")[2],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU",
        "seed": 0,
        "values": {"rows": []},
    }
    with tempfile.TemporaryDirectory() as work:
        for number, (name, steps) in enumerate(PLANS.items()):
            found = measured(options.task, folder, steps, Path(work) / str(number), options.key)
            result["values"]["rows"].append({"plan": name, **found})
            files.write_json(options.out, result)


if __name__ == "__main__":
    main()
