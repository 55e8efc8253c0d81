"""A run killed after any row continues, keeps the rows that it has, and ends in the same recipe."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def words(model: Path) -> list[str]:
    return ["tsopt", "experiment=smoke", f"model.path={model}", "recipe=none", "tsopt.num_samples=1"]


def start(model: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "idcompress.cli", *words(model)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rows(folder: str) -> list[bytes]:
    traces = list(Path().glob(f"{folder}/trace.jsonl"))
    return traces[0].read_bytes().split(b"\n")[:-1] if traces else []


def test_killed_run_continues(idc, random_model):
    model, own = random_model("ip2p"), "outputs/*/*/tsopt/*"
    assert idc(*words(model), "hydra.run.dir=whole").code == 0

    kept: list[bytes] = []
    for number in (3, 9):
        process = start(model)
        deadline = time.monotonic() + 300
        while len(rows(own)) < number and time.monotonic() < deadline:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        now = rows(own)
        assert len(now) >= number
        assert now[: len(kept)] == kept
        kept = now
    (run,) = Path().glob(own)
    with (run / "trace.jsonl").open("ab") as file:  # as if the machine had stopped in the middle of a write
        file.write(b'{"num_inference_steps": 2, "gam')

    result = idc(*words(model))
    assert result.code == 0, result.err
    assert "continuing the interrupted run" in result.out
    assert [*Path().glob(own)] == [run]
    final = rows(own)
    assert final[: len(kept)] == kept
    strip = [{k: v for k, v in json.loads(r).items() if not k.endswith("_seconds")} for r in final]
    straight = [{k: v for k, v in json.loads(r).items() if not k.endswith("_seconds")} for r in rows("whole")]
    assert strip == straight
    assert (run / "recipe.json").read_bytes() == Path("whole/recipe.json").read_bytes()


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
