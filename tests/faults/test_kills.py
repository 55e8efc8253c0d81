"""Every stage is stopped at random moments, by SIGKILL, SIGTERM or Ctrl-C, and the same command goes on.

What it leaves in the end is what an undisturbed run leaves, but for what the clock says. Runs are forked from a server
that has imported everything, so that the moments fall into the work.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SMOKE = ("experiment=smoke", "recipe=none")
PLAN = [
    "recipe=none",
    "num_inference_steps=6",
    "plan.macs=0.45",
    "plan.menu=[timesteps,depth]",
    "plan.depths=[5]",
    "plan.lists=[trailing,gits]",
    "plan.patterns=[full,every_2nd]",
    "plan.samplers=[fitted]",
    "plan.fills=[hold]",
    "plan.num_fitted=1",
    "plan.num_searched=1",
    "plan.num_validated=1",
    "plan.num_certified=2",
    "plan.max_step_images=24",
]
ROWS = [
    "compare.num_inference_steps=[2,3]",
    "compare.num_searched=2",
    "compare.num_evaluated=2",
    "compare.num_images=1",
    "compare.metrics=[psnr]",
    "compare.rows.unipc=null",
    "compare.rows.best=null",
]
STUDY = [
    "study=guidance",
    "study.num_searched=1",
    "study.scales=[1.0,1.5]",
    "study.num_inference_steps=[2]",
    "study.reference_steps=4",
    "study.num_evaluated=2",
    "timesteps.gamma=0.8",
]
# Command -> moments, and words that make a small run of it. 100 moments in all.
COMMANDS = {
    "compress": (13, ("experiment=smoke",)),
    "depth-search": (9, ("experiment=smoke", "depth_search.min_depth=9", "depth_search.whole_curve=true")),
    "finetune": (12, (*SMOKE, "depth=9", "trainer.max_steps=4", "finetune.checkpoint_every_n_steps=1")),
    "tsopt": (9, (*SMOKE, "sampler=fitted", "fit.folds=1")),
    "plan": (10, PLAN),
    "evaluate": (9, (*SMOKE, "depth=9", "evaluate.num_samples=4")),
    "compare": (9, (*SMOKE, *ROWS)),
    "study": (9, (*SMOKE, *STUDY)),
    "translate": (10, ("recipe=none", "num_inference_steps=3", "image=pictures", "prompt=make it warmer")),
    "export": (10, ("recipe=none", "depth=9", "export.path=run/exported")),
}
# Of the clock and the machine alone; pages show times.
CLOCK = ("timing.json", "written.jsonl", "environment.json", "log.txt", "report.html", "report.md", "metrics.csv")
# Times and how much was sampled anew; digests of files that hold times; a commit may be made while this test runs.
UNEQUAL = ("timing", "results", "code")
LIMIT_S = 600


def work(folder: Path, words: list[str]) -> None:
    """A command in a process of its own; what it prints goes to output.txt."""
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(output), "w", buffering=1) for _ in range(2))
    from idcompress import cli

    cli.main(words)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A context whose processes begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["idcompress.launch", "idcompress.stages.finetune", "idcompress.stages.compare", "idcompress.stages.export"]
    )
    # The server starts with the first process, and takes its imports then.
    first = context.Process(target=work, args=(tmp_path_factory.mktemp("server"), ["--version"]))
    first.start()
    first.join()
    return context


def start(server, folder: Path, command: str, words: Sequence[str], model: Path):
    if not folder.is_dir():
        (folder / "pictures").mkdir(parents=True)
        for shade in range(4):
            Image.new("RGB", (40, 30), (60 * shade, 90, 120)).save(folder / "pictures" / f"{shade}.png")
    process = server.Process(target=work, args=(folder, [command, *words, f"model.path={model}", "hydra.run.dir=run"]))
    process.start()
    return process


def without_clock(value):
    """A JSON value without wall-clock times, and without the digests of files that hold some."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in UNEQUAL and not k.endswith("seconds")}
        return {k: without_clock(v) for k, v in kept.items()}
    return [without_clock(v) for v in value] if isinstance(value, list) else value


def left_by(folder: Path) -> dict[str, object]:
    """File name -> content of a run folder."""
    found: dict[str, object] = {}
    for path in sorted(path for path in (folder / "run").rglob("*") if path.is_file()):
        if "logs" in path.parts:  # Lightning's, a folder for every start
            continue
        name, data = str(path.relative_to(folder)), path.read_bytes()
        if path.name in CLOCK:
            found[name] = "there"
        elif path.suffix == ".json":
            found[name] = without_clock(json.loads(data))
        elif path.name == "compare.csv":
            rows = csv.DictReader(io.StringIO(data.decode()))
            found[name] = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]
        elif path.suffix == ".jsonl":
            found[name] = [without_clock(json.loads(line)) for line in data.splitlines()]
        else:
            found[name] = data
    return found


def output_of(folder: Path) -> str:
    file = folder / "output.txt"
    return file.read_text(errors="replace") if file.is_file() else ""


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_that_was_stopped_anywhere_ends_as_one_that_was_not(tmp_path, random_model, server, command):
    moments, words = COMMANDS[command]
    model, draw = random_model("ip2p"), random.Random(command)
    whole = start(server, tmp_path / "whole", command, words, model)
    began = time.monotonic()
    whole.join(LIMIT_S)
    took = time.monotonic() - began
    assert whole.exitcode == 0, output_of(tmp_path / "whole")
    wanted, stops = left_by(tmp_path / "whole"), 0
    assert wanted
    for moment in range(moments):
        folder, number = tmp_path / f"{moment}", SIGNALS[moment % len(SIGNALS)]
        stopped = start(server, folder, command, words, model)
        began = time.monotonic()
        stopped.join(draw.uniform(0.05, took))
        if stopped.is_alive():
            os.kill(stopped.pid, number)
            stopped.join(60)
            stops += 1
            assert stopped.exitcode is not None, "it goes on"
            assert not re.search(r"^Traceback", output_of(folder), re.MULTILINE), output_of(folder)
        else:  # faster than the ones before
            took = min(took, time.monotonic() - began)
        if stopped.exitcode != 0:
            again = start(server, folder, command, words, model)
            again.join(LIMIT_S)
            assert again.exitcode == 0, (moment, number.name, output_of(folder))
        found = left_by(folder)
        different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        assert not different, (moment, number.name, different)
    print(f"{command}: stopped at {stops} of {moments} moments, {took:.1f} s a run")
    assert stops >= moments // 2


def test_there_are_a_hundred_moments():
    assert sum(moments for moments, _ in COMMANDS.values()) == 100
