"""Every stage is stopped at random moments, by SIGKILL, SIGTERM or Ctrl-C, and the same command goes on.

What it leaves in the end is what an undisturbed run leaves, but for what the clock says.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MOMENTS = 100
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STAGES = "compress.stages=[depth_search,finetune,tsopt,evaluate,report]"
COMMAND = ("compress", "experiment=smoke", STAGES, "evaluate.latency=false", "hydra.run.dir=run")
# Of the clock and the machine alone; pages show times.
CLOCK = ("timing.json", "written.jsonl", "environment.json", "log.txt", "report.html", "report.md", "metrics.csv")
# Times and how much was sampled anew; digests of files that hold times.
UNEQUAL = ("timing", "results")


def start(folder: Path, model: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "idcompress.cli", *COMMAND, f"model.path={model}"]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def without_clock(value):
    """A JSON value without wall-clock times, and without the digests of files that hold some."""
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if k not in UNEQUAL and not k.endswith("_seconds")}
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
        elif path.suffix == ".jsonl":
            found[name] = [without_clock(json.loads(line)) for line in data.splitlines()]
        else:
            found[name] = data
    return found


@pytest.mark.slow
def test_a_run_that_was_stopped_anywhere_ends_as_one_that_was_not(tmp_path, random_model):
    model, draw = random_model("ip2p"), random.Random(0)
    began = time.monotonic()
    output, _ = (whole := start(tmp_path / "whole", model)).communicate()
    took = time.monotonic() - began
    assert whole.returncode == 0, output
    wanted = left_by(tmp_path / "whole")
    assert any(name.endswith("report.html") for name in wanted)
    for moment in range(MOMENTS):
        folder, number = tmp_path / f"{moment}", SIGNALS[moment % len(SIGNALS)]
        stopped = start(folder, model)
        try:
            output, _ = stopped.communicate(timeout=draw.uniform(0.1, took))
        except subprocess.TimeoutExpired:
            stopped.send_signal(number)
            output, _ = stopped.communicate(timeout=60)
        assert not re.search(r"^Traceback", output, re.MULTILINE) or number == signal.SIGINT, output
        again = start(folder, model)
        output, _ = again.communicate()
        assert again.returncode == 0, (moment, number.name, output)
        found = left_by(folder)
        different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        assert not different, (moment, number.name, different)
