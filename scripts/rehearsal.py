"""What each command takes on weights of the published size: seconds, memory and network calls, as a stored result.

    python -m scripts.full_size ip2p FOLDER --image-px 128
    python -m scripts.rehearsal ip2p FOLDER --out docs/results/full_size.json
    python -m scripts.rehearsal ip2p FOLDER --out docs/results/full_size_plan.json --plan

Runs README's commands one after the other, at few steps and on few of the packaged photographs: the numbers say what a
machine must have and what is in the way, not how good a picture is. Each command has a process of its own, branched off
from one that has loaded the libraries: they are part of its memory and not of its seconds. A command that fails ends
the rehearsal, with what went before stored.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import skimage.data
import torch

from idcompress import cli, launch, registry  # noqa: F401  launch: loaded before a process branches off
from idcompress.runs import files
from idcompress.runs.run_dir import environment
from idcompress.stages._run import code_state

FEW = [
    "num_inference_steps=3",
    "depth_search.num_samples=1",
    "depth_search.min_depth=11",
    "depth_search.thresholds=[{metric: psnr, bound: 5}]",
    "tsopt.num_inference_steps=2",
    "tsopt.num_samples=1",
    "tsopt.reference_steps=3",
    "evaluate.num_samples=1",
    "evaluate.metrics=[psnr,ssim]",
    "evaluate.alternatives=false",
    "evaluate.latency=false",
]
# One image at a time; a checkpoint after each of two updates, so that two lie on the disk.
TUNE = [
    "loss=task",
    "finetune.batch_size=2",
    "trainer.accumulate_grad_batches=2",
    "finetune.gradient_checkpointing=true",
    "finetune.num_samples=1",
    "finetune.num_inference_steps=1",
    "finetune.checkpoint_every_n_steps=1",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
]
# The full model has three steps, and the plan too little work for three whole ones.
PLAN = [
    "num_inference_steps=3",
    "plan.macs=0.8",
    "plan.menu=[]",
    "plan.patterns=[every_2nd]",
    "plan.lists=[trailing]",
    "plan.depths=[5]",
    "plan.samplers=[fitted]",
    "plan.fills=[hold]",
    "plan.num_fitted=1",
    "plan.num_searched=1",
    "plan.num_validated=1",
    "plan.num_certified=1",
    "plan.max_step_images=12",
]
PROMPT = {"ip2p": "prompt=make it blue", "controlnet": "prompt=a blue picture", "stablesr": "prompt="}


def commands(task: str, photo: Path, depth: int) -> list[list[str]]:
    """In README's order; each goes on with what the one before it made, but fine-tuning, which cuts to a depth."""
    return [
        ["profile", "recipe=none", "depth=9", "profile.latency=false"],
        ["translate", "recipe=none", f"image={photo}", PROMPT[task], *FEW[:1]],
        ["depth-search", *FEW],
        ["tsopt", *FEW],
        ["evaluate", *FEW],
        ["report"],
        ["export", "export.path=small", "export.host=true", "dtype=float16"],
        ["finetune", "recipe=none", f"depth={depth}", *TUNE],
    ]


def commands_of_plan(task: str, photo: Path) -> list[list[str]]:
    """A search for a plan, and what takes the recipe that it leaves."""
    return [
        ["plan", "recipe=none", *PLAN],
        ["evaluate", *FEW],
        ["translate", f"image={photo}", PROMPT[task]],
        ["export", "export.path=planned", "dtype=float16"],
    ]


def measure(arguments: list[str], out: Path) -> int:
    """Run one command in a process that ends with it, and write what it took.

    Returns:
        Its exit code.
    """
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code = 1
    try:
        code = _measured(arguments, out)
    finally:
        sys.stdout.flush()
        os._exit(code)


def _measured(arguments: list[str], out: Path) -> int:
    calls = 0

    def count(module: torch.nn.Module, _inputs: Any) -> None:
        nonlocal calls
        if type(module).__name__.endswith("UNet2DConditionModel"):
            calls += next(module.parameters()).device.type != "meta"

    torch.nn.modules.module.register_module_forward_pre_hook(count)
    before, began, code = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
    try:
        cli.main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    used = resource.getrusage(resource.RUSAGE_SELF)
    row = {
        "seconds": round(time.perf_counter() - began, 1),
        "of the CPU": round(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak memory, GiB": round(used.ru_maxrss * 1024 / 2**30, 2),
        "U-Net calls": calls,
    }
    files.write_json(out, row)
    return code


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("task", choices=sorted(PROMPT))
    parser.add_argument("folder", type=Path, help="a pipeline folder")
    parser.add_argument("--out", type=Path, required=True, help="JSON that the rows go to; other tasks' rows stay")
    parser.add_argument("--work", type=Path, help="folder to run in [a temporary one]")
    parser.add_argument("--depth", type=int, default=9, help="of the fine-tuning [9]")
    parser.add_argument("--only", help="run this command alone; the stored rows of the others stay")
    parser.add_argument("--plan", action="store_true", help="the commands about plans instead")
    options = parser.parse_args(argv)
    out, here = options.out.resolve(), Path.cwd()
    side = 8 * int(json.loads((options.folder / "unet" / "config.json").read_text())["sample_size"])
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        rows, failed = _run_all(options, work)
        os.chdir(here)
    stored = files.read_json(out, "results") if out.is_file() else {"version": 1, "values": {}}
    kept = stored["values"].get(options.task, []) if options.only else []
    stored["values"][options.task] = [row for row in kept if row["command"].split()[1] != options.only] + rows
    stored |= {
        "command": f"python -m scripts.rehearsal {options.task} FOLDER{' --plan' * options.plan}",
        "commit": code_state().rpartition("+")[2],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{os.environ.get('OMP_NUM_THREADS', 'all')} thread(s) of {environment()['cpu']}",
        "seed": 0,
        "note": f"Random weights at {side} px, float32; the libraries are part of the memory and not of the seconds.",
    }
    files.write_json(out, stored)
    print(json.dumps(rows, indent=1))
    sys.exit(failed)


def _run_all(options: argparse.Namespace, work: Path) -> tuple[list[dict[str, Any]], int]:
    """A row for each command, by the titles of its table, and the exit code of the last one."""
    task, folder = options.task, options.folder.resolve()
    for name in registry.names("command"):
        registry.load("command", name)
    photo = Path(skimage.data.__file__).parent / "astronaut.png"
    row_file, rows, code = work / "row.json", [], 0
    os.chdir(work)
    for command in commands_of_plan(task, photo) if options.plan else commands(task, photo, options.depth):
        if options.only in (None, command[0]) and not code:
            code = measure([*command, f"task={task}", "model=official", f"model.path={folder}"], row_file)
            if not code:
                shown = " ".join(["idc", command[0], *(word for word in command[1:] if word not in FEW + TUNE + PLAN)])
                rows.append({"command": shown.replace(str(photo), "PHOTO"), **files.read_json(row_file, "row")})
    return rows, code


if __name__ == "__main__":
    main()
