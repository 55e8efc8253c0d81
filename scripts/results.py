"""Measure the stored results of docs/results anew: run their commands, and store what the runs found.

    python -m scripts.results            # all of them, in turn; `make results`
    python -m scripts.results NAME ...   # some
    python -m scripts.results --list     # their names and commands

A run lies in outputs/results/NAME and goes on where it was stopped, so that a repeated command measures only what is
missing; remove its folder to measure again. `make benchmarks` then renews the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idcompress.stages._run import code_state
from scripts import benchmarks

ROOT = benchmarks.ROOT
RUNS = ROOT / "outputs" / "results"
OUT = "result.json"  # of a script
KEPT = ("cut", "plan")  # of a recipe

Tables = dict[str, list[Any]]


@dataclass(frozen=True)
class Result:
    """A stored result.

    Attributes:
        command: as a user types it; `make demo TASK=...`, `idc ...` or `python -m scripts....`, which takes --out.
        tables: of its run folder.
        note: what must be said under the tables, from the run folder.
    """

    command: str
    tables: Callable[[Path], Tables]
    note: Callable[[Path], str] = lambda run: ""


# --- tables of runs ---------------------------------------------------------------------------------------------------


def of_curve(run: Path) -> Tables:
    """A depth search that probed every depth."""
    rows = [json.loads(line) for line in (run / "trace.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "depth" in row and "metrics" in row]
    whole = rows[0]["params"]
    label = benchmarks.LABELS | {"psnr": "PSNR to the full model's 50 steps, dB"}
    return {
        "curve": [
            {
                "depth": str(row["depth"]),
                "parameters": f"{row['params'] / whole:.0%}",
                **{
                    label[name]: "exact" if name in row.get("perfect", ()) else value
                    for name, value in row["metrics"].items()
                },
            }
            for row in rows
        ]
    }


def of_images(run: Path) -> str:
    return f"{json.loads((run / 'metrics.json').read_text())['num_images']} images of the search's photographs."


def of_comparison(run: Path) -> Tables:
    """What `idc compare` found, by its first metric on all images and each kind of them: all rows, and by block."""
    value = json.loads((run / "compare.json").read_text())
    name = next(iter(value["rows"][0]["metrics"]))
    unit = value["rows"][0]["metrics"][name]["unit"]
    title = "PSNR to the full model's result, dB" if name == "psnr" else f"{name} {unit}".rstrip()
    rows = []
    for found in value["rows"]:
        metric, search = found["metrics"][name], found["search"]
        plain = "minus_plain" if "minus_plain" in metric or found["plain"] else "minus_first"
        rows.append(
            {
                **({"at": found["block"]} if found["block"] else {}),
                "method": found["label"],
                title: "exact" if metric.get("perfect") else metric["value"],
                **{f"{kind} ones": of["value"] for kind, of in metric["by_kind"].items()},
                "more than the best plain row" if plain == "minus_plain" else "more than the first row": (
                    metric.get(plain) or None
                ),
                "steps": found["num_inference_steps"],
                "MACs": found["macs_ratio"],
                "parameters": found["params"],
                "search: step-images": search and search["step_images"],
                "seconds": search and round(search["seconds"]),
            }
        )
    blocks = {"".join(filter(str.isalnum, str(row.get("at", "")).title())): row.get("at") for row in rows}
    return {
        "rows": rows,
        **{
            name: [{key: value for key, value in row.items() if key != "at"} for row in rows if row.get("at") == block]
            for name, block in blocks.items()
            if name
        },
    }


def of_images_compared(run: Path) -> str:
    return " ".join(json.loads((run / "compare.json").read_text())["notes"][:1])


def of_certificates(run: Path) -> Tables:
    """Plans under budgets, each beside its rivals on images that no search has seen: all, and by budget."""
    tables: Tables = {"plans": []}
    for found in json.loads((run / "metrics.json").read_text())["plans"]:
        certificate = found["certificate"]
        reference, unit = certificate["references"][0], certificate["unit"]
        title = f"{certificate['metric'].upper()} to {reference}'s result{f', {unit}' if unit else ''}"
        plan = {"label": f"**the plan for {found['budget']['macs']:g} of the work**", "plain": False}
        plan |= {name: found[name] for name in ("num_inference_steps", "macs_ratio")} | {"against": certificate["plan"]}
        rows = tables[f"budget_{found['budget']['macs']:g}".replace(".", "_")] = []
        for one in (plan, *certificate["rivals"]):
            values = one["against"][reference]
            rows.append(
                {
                    "": f"full model, {one['label']}" if one["plain"] else one["label"],
                    "steps": one["num_inference_steps"],
                    "MACs": one["macs_ratio"],
                    title: "exact" if values.get("perfect") else values["value"],
                    **{f"{kind} ones": of["value"] for kind, of in values["by_kind"].items()},
                    "worst tenth": values["worst_tenth"],
                    "the plan is more by": values.get("plan_minus_this") or None,
                }
            )
        tables["plans"] += rows
    return tables


def of_unseen_images(run: Path) -> str:
    found = json.loads((run / "metrics.json").read_text())
    counted, spent = found["num_images"], [f"{row['step_images']:,}" for row in found["plans"]]
    return (
        f"Fitted on {counted['fitted']} images, searched on {counted['searched']}, chosen on {counted['validated']}, "
        f"measured on {counted['certified']} others; {' and '.join(spent)} step-images of search."
    )


def of_study(run: Path) -> Tables:
    """The table of a study, and its answer in a sentence."""
    value = json.loads((run / "study.json").read_text())
    return {"rows": value["rows"], "outcome": [value["outcome"]]}


def of_tunings(run: Path) -> Tables:
    """Fine-tunings of a sweep over depths."""
    rows = []
    for file in sorted(run.glob("*/metrics.json"), key=lambda file: -json.loads(file.read_text())["depth"]):
        value = json.loads(file.read_text())
        before, after = value["before"]["psnr"], value["after"]["psnr"]
        rows.append({"depth": str(value["depth"]), "before, dB": before, f"after {value['steps']} updates, dB": after})
    return {"recovery": rows}


def of_calls(run: Path) -> Tables:
    """Steps of images that a sweep's two jobs sampled, judging on all images and beyond doubt, and what they chose."""
    all_images, early = sorted(path.parent for path in run.glob("*/run.json"))
    rows = [
        {
            "stage": row["stage"],
            "step-images, judged on all images": row["steps of images sampled"],
            "judged beyond doubt": other["steps of images sampled"],
            "ratio": other["steps of images sampled"] / row["steps of images sampled"],
        }
        for row, other in zip(benchmarks.calls(all_images), benchmarks.calls(early), strict=True)
    ]
    chosen = [
        [json.loads(file.read_text())[key] for file in sorted(job.glob("tsopt/steps_*/recipe.json")) for key in KEPT]
        for job in (all_images, early)
    ]
    return {"rows": rows, "outcome": [f"The recipes are {'the same' if chosen[0] == chosen[1] else 'not the same'}."]}


def of_script(run: Path) -> Tables:
    """What a script of this folder wrote by itself."""
    found: Tables = json.loads((run / OUT).read_text())["values"]
    return found


def of_script_note(run: Path) -> str:
    return str(json.loads((run / OUT).read_text()).get("note", ""))


# --- what is measured -------------------------------------------------------------------------------------------------

_CURVE = "depth_search.num_inference_steps=20 depth_search.whole_curve=true"
_EDITS = (
    "'depth_search.thresholds=[{metric: psnr, bound: 10}, {metric: edit_retrieval, bound: 0}, "
    "{metric: hard_edit_retrieval, bound: 0}]'"
)
_EDGES = "'depth_search.thresholds=[{metric: psnr, bound: 10}, {metric: canny_f1, bound: 0}]'"
_STEPS = "'compare.num_inference_steps=[3,5,8,10]'"
TASKS = ("ip2p", "controlnet", "stablesr", "inpaint", "high_frequency")


def _curve(task: str, images: int, thresholds: str = "") -> Result:
    command = f"idc depth-search task={task} {_CURVE} depth_search.num_samples={images} {thresholds}".rstrip()
    return Result(command, of_curve, of_images)


def _comparison(keys: str) -> Result:
    return Result(f"idc compare {keys}", of_comparison, of_images_compared)


RESULTS: dict[str, Result] = {
    **{
        f"demo_{task}": Result(f"make demo TASK={task}", benchmarks.of_plans, benchmarks.of_photographs)
        for task in TASKS
    },
    "depth_ip2p": _curve("ip2p", 40, _EDITS),
    "depth_controlnet": _curve("controlnet", 16, _EDGES),
    "depth_stablesr": _curve("stablesr", 8),
    **{f"compare_{task}": _comparison(f"task={task} {_STEPS}") for task in TASKS},
    **{
        f"compare_{task}_strong": _comparison(
            f"task={task} 'compare.guidance={{guidance_scale: [3.0,7.5]}}' 'compare.num_inference_steps=[8]'"
        )
        for task in ("ip2p", "controlnet")
    },
    **{
        f"plan_{name}": Result(f"idc plan recipe=none {keys}", of_certificates, of_unseen_images)
        for name, keys in {
            "ip2p": "task=ip2p 'plan.macs=[0.08,0.11]'",
            "ip2p_guidance_3": "task=ip2p plan.macs=0.11 guidance_scale=3",
            "ip2p_guidance_7": "task=ip2p plan.macs=0.11 guidance_scale=7.5",
            "controlnet": "task=controlnet plan.macs=0.08",
            "stablesr": "task=stablesr plan.macs=0.05",
        }.items()
    },
    "compare_schedules": _comparison("task=ip2p compare=schedules"),
    "compare_table4": _comparison("task=ip2p compare=table4"),
    "compare_tableS9": _comparison("task=ip2p compare=tableS9"),
    "compare_table3_controlnet": _comparison("task=controlnet compare=table3_controlnet"),
    "compare_table3_stablesr": _comparison("task=stablesr compare=table3_stablesr"),
    "compare_figure5a": _comparison("task=ip2p compare=figure5a"),
    **{
        f"study_{study}": Result(f"idc study study={study} task=ip2p", of_study)
        for study in ("step_counts", "guidance", "depth_skip", "instructions")
    },
    "calls_ip2p": Result(
        "idc compress -m task=ip2p experiment=paper early_stop=null,0.98 'compress.stages=[depth_search,tsopt]' "
        "'tsopt.num_inference_steps=[10,5]'",
        of_calls,
    ),
    "onnx_ip2p": Result("python -m scripts.bench_onnx --task ip2p", of_script, of_script_note),
    **{
        f"time_of_plans_{task}": Result(f"python -m scripts.bench_plans {task}", of_script)
        for task in ("ip2p", "controlnet", "stablesr")
    },
    "finetune_depths": Result(
        "idc finetune -m task=ip2p recipe=none depth=8,7,6,5 loss.task=0 trainer.max_steps=60", of_tunings
    ),
}


# --- running and storing ----------------------------------------------------------------------------------------------


def measure(name: str, result: Result) -> None:
    """Run a result's command on one thread, and store what it found.

    Raises:
        subprocess.CalledProcessError: the command failed; its own words say why.
    """
    run = RUNS / name
    where = f"hydra.{'sweep' if ' -m ' in result.command else 'run'}.dir={run}"
    words = shlex.split(result.command)
    if words[0] == "python":
        run.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, *words[1:], "--out", str(run / OUT)]
    elif words[0] == "make":
        words = [*words, f"KEYS={where}"]
    else:
        words = [str(Path(sys.executable).with_name("idc")), *words[1:], where]
    began = time.monotonic()
    subprocess.run(words, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    stored = {
        "version": 1,
        "command": result.command,
        "commit": code_state().rpartition("+")[2],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"one thread of {benchmarks.processor()}",
        "seed": 0,
        "note": result.note(run),
        "values": result.tables(run),
    }
    benchmarks.store(name, stored)
    print(f"{name}: stored after {(time.monotonic() - began) / 60:.1f} min", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of RESULTS; none is all")
    parser.add_argument("--list", action="store_true", help="say what there is, and what it runs")
    chosen = parser.parse_args(arguments)
    if unknown := {*chosen.names} - {*RESULTS}:
        parser.error(f"no result is called {', '.join(sorted(unknown))}; there are: {', '.join(RESULTS)}")
    for name in chosen.names or RESULTS:
        if chosen.list:
            print(f"{name:<28} {RESULTS[name].command}")
        else:
            measure(name, RESULTS[name])


if __name__ == "__main__":
    main()
