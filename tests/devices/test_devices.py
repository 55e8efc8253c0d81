"""`devices=N`: every decision and file is that of one process, and a process that dies ends the run with its message."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMOKE = ("experiment=smoke", "device=cpu")
SCALES = ("guidance_scale=1.5", "image_guidance_scale=1")
PLAN = (
    *("plan.num_fitted=2", "plan.num_searched=2", "plan.num_validated=1", "plan.num_certified=2"),
    *("plan.macs=0.5", "plan.menu=[timesteps,depth]", "plan.patterns=[full,every_2nd]", "plan.lists=[trailing,gits]"),
    *("plan.depths=[5]", "plan.samplers=[fitted]", "plan.fills=[hold]", "plan.max_step_images=30", "plan.ms=1e9"),
)
FEW = ("tsopt.num_samples=3", "timesteps=gits")
COMPARE = (
    *("compare=equal_cost", "compare.num_inference_steps=2", "compare.num_searched=2", "compare.num_evaluated=2"),
    *("compare.num_images=1", "compare.metrics=[psnr]"),
    *(f"compare.rows.{name}=null" for name in ("trailing", "dpm_solver", "unipc", "paper", "best", "gamma")),
    "+compare.rows.learned={timesteps: {name: ld3, rounds: 1}}",
)
# A search of every kind, and what measures them; each starts from the folder of an earlier one.
COMMANDS = {
    "depth": ("depth-search", *SMOKE, "depth_search.num_samples=8", "recipe=none"),
    "list": ("tsopt", *SMOKE, *FEW, "sampler=fitted", "recipe=depth"),
    "plan": ("plan", *SMOKE, *SCALES, *PLAN, "recipe=none"),
    "compare": ("compare", *SMOKE, *COMPARE, "recipe=depth"),
    "evaluate": ("evaluate", *SMOKE, "evaluate.num_samples=3", "recipe=list"),
}
# What says when and on what a run was.
ABOUT_THE_RUN = ("log.txt", "config.yaml", "timing.json", "environment.json", "run.json", ".lock")
RUN_ALL = """
import json, os, sys
from idcompress import cli
for name, words in json.loads(sys.argv[1]).items():
    os.environ["MASTER_PORT"] = words.pop()
    cli.main([*words, f"hydra.run.dir={name}"])
"""


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def without_times(value):
    """A JSON value without wall-clock fields."""
    if isinstance(value, dict):
        named = {k: v for k, v in value.items() if not k.endswith(("seconds", "milliseconds"))}
        return {k: without_times(v) for k, v in named.items() if k not in ("timing", "ms")}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def left(folder: Path) -> dict[str, object]:
    """What a run has left, by file."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ABOUT_THE_RUN):
        name = str(path.relative_to(folder))
        if path.suffix in (".json", ".jsonl") and path.name != "recipe.json":
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            found[name] = [without_times(json.loads(line)) for line in lines]
        elif path.suffix not in (".html", ".md", ".csv") or path.name == "per_image.csv":
            found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_more_processes_leave_what_one_leaves(idc, random_model, tmp_path, number):
    model = f"model.path={random_model('ip2p')}"
    for name, words in COMMANDS.items():
        result = idc(*words, model, f"hydra.run.dir={name}")
        assert result.code == 0, result.err

    # All in processes that are there already, as torchrun or a user may start them.
    shared = tmp_path / "shared"
    shared.mkdir()
    given = json.dumps({name: [*w, model, f"devices={number}", free_port()] for name, w in COMMANDS.items()})
    place = {"MASTER_ADDR": "127.0.0.1", "NODE_RANK": "0", "WORLD_SIZE": str(number)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RUN_ALL, given],
            cwd=shared,
            env=os.environ | place | {"LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(number)
    ]
    told = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * number, told
    assert not any(told[1:]), told[1]  # the first one speaks
    for name in COMMANDS:
        one, several = left(Path(name)), left(shared / name)
        assert one.keys() == several.keys() and len(one) > 1
        for file in one:
            assert one[file] == several[file], f"{name}: {file}"
        assert json.loads((shared / name / "timing.json").read_text())["devices"] == number


def run(cwd: Path, *words: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "idcompress.cli", *words],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children_of(process: subprocess.Popen) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in found.read_text().split()] if found.is_file() else []


def wait_for(what, process: subprocess.Popen, seconds: float = 240):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    raise AssertionError("waited for too long")


def is_gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes below /proc")
def test_a_process_that_dies_ends_the_run_and_the_same_command_continues(random_model, tmp_path):
    command = ("tsopt", *SMOKE, f"model.path={random_model('ip2p')}", "recipe=none", "hydra.run.dir=run", "devices=2")
    trace = tmp_path / "run" / "trace.jsonl"

    def rows():
        return trace.read_bytes().splitlines() if trace.exists() else []

    for sent, to_child, code, words in (
        (signal.SIGKILL, True, 1, "process 2 of 2 was killed by SIGKILL"),
        (signal.SIGTERM, False, 143, "terminated; the same command continues"),
    ):
        before = len(rows())
        process = run(tmp_path, *command)
        wait_for(lambda before=before: len(rows()) > before, process)
        (child,) = children_of(process)
        os.kill(child if to_child else process.pid, sent)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert err.count("\n") == 1 and words in err
        assert is_gone(child)
    kept = rows()
    process = run(tmp_path, *command)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "continuing the interrupted run" in out and rows()[: len(kept)] == kept
    assert (tmp_path / "run" / "recipe.json").is_file()
