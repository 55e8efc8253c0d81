"""A run killed after any row continues, keeps the rows that it has, and ends in the same recipe."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def start(model: Path, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "idcompress.cli", "tsopt", "experiment=smoke", f"model.path={model}"]
    command += ["recipe=none", "tsopt.num_samples=1"]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rows(cwd: Path) -> list[bytes]:
    traces = list(cwd.glob("outputs/*/*/tsopt/*/trace.jsonl"))
    return traces[0].read_bytes().split(b"\n")[:-1] if traces else []


def test_killed_run_continues(random_model, tmp_path):
    model = random_model("ip2p")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    process = start(model, whole)
    assert process.wait(timeout=600) == 0

    kept: list[bytes] = []
    for number in (3, 9):
        process = start(model, broken)
        deadline = time.monotonic() + 300
        while len(rows(broken)) < number and time.monotonic() < deadline:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        now = rows(broken)
        assert len(now) >= number
        assert now[: len(kept)] == kept
        kept = now
    trace = next(broken.glob("outputs/*/*/tsopt/*/trace.jsonl"))
    with trace.open("ab") as file:  # as if the machine had stopped in the middle of a write
        file.write(b'{"num_inference_steps": 2, "gam')

    process = start(model, broken)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    assert "continuing the interrupted run" in out
    assert len(list(broken.glob("outputs/*/*/tsopt/*"))) == 1
    final = rows(broken)
    assert final[: len(kept)] == kept
    strip = [{k: v for k, v in json.loads(r).items() if not k.endswith("_seconds")} for r in final]
    straight = [{k: v for k, v in json.loads(r).items() if not k.endswith("_seconds")} for r in rows(whole)]
    assert strip == straight
    ours, theirs = (next(d.glob("outputs/*/*/tsopt/*/recipe.json")).read_bytes() for d in (broken, whole))
    assert ours == theirs


@pytest.mark.parametrize("command", ["compress"])
def test_finished_stages_are_kept(idc, random_model, command, monkeypatch):
    """An interruption after the depth search: the next run of the same command starts at the timestep search."""
    from idcompress.stages import evaluate

    common = (command, "experiment=smoke", f"model.path={random_model('ip2p')}", "timesteps.budget=4")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        result = idc(*common)
        assert result.code == 130
        assert "continues" in result.err
    result = idc(*common)
    assert result.code == 0
    assert "continuing" in result.out
    assert "== depth-search" not in result.out and "== evaluate" in result.out
