"""`devices=N`: decisions and files are those of one process; one that dies ends the run with its message."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from idcompress import cli
from idcompress.bench import bench
from idcompress.errors import IdcError
from idcompress.runs import ranks

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
    "depth": ("depth-search", *SMOKE, "depth_search.num_samples=8", "depth_search.min_depth=12", "recipe=none"),
    "list": ("tsopt", *SMOKE, *FEW, "sampler=fitted", "recipe=depth"),
    "plan": ("plan", *SMOKE, *SCALES, *PLAN, "recipe=none"),
    "compare": ("compare", *SMOKE, *COMPARE, "recipe=depth"),
    "evaluate": ("evaluate", *SMOKE, "evaluate.num_samples=3", "recipe=list"),
}
# What says when and on what a run was.
ABOUT_THE_RUN = ("log.txt", "config.yaml", "timing.json", "environment.json", "run.json", ".lock")


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


def member(rank: int, place: dict[str, str], cwd: Path, commands: dict[str, list[str]]) -> None:
    """What one of several processes does, with its output in a file."""
    os.environ |= place | {"LOCAL_RANK": str(rank)}
    os.chdir(cwd)
    with (cwd / f"{rank}.txt").open("wb") as told:
        os.dup2(told.fileno(), 1)
        os.dup2(told.fileno(), 2)
    sys.stderr = os.fdopen(2, "w")
    for name, words in commands.items():
        os.environ["MASTER_PORT"] = words.pop()
        with os.fdopen(os.dup(1), "w") as sys.stdout:
            cli.main([*words, f"hydra.run.dir={name}"])
        while not json.loads(Path(name, "run.json").read_text())["finished"]:  # the next one takes its recipe
            time.sleep(0.05)


def members(number: int, cwd: Path, commands: dict[str, list[str]], start: str = "fork") -> tuple[list[int], list[str]]:
    """Exit codes and output of processes that are there before the commands."""
    place = {"MASTER_ADDR": "127.0.0.1", "NODE_RANK": "0", "WORLD_SIZE": str(number)}
    context = multiprocessing.get_context(start)
    processes = [context.Process(target=member, args=(rank, place, cwd, commands)) for rank in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
    return [process.exitcode for process in processes], [(cwd / f"{r}.txt").read_text() for r in range(number)]


@pytest.mark.parametrize(
    ("number", "names", "start"),
    [
        (2, ("depth", "list", "plan", "evaluate"), "fork"),  # without another import of everything
        pytest.param(4, (*COMMANDS,), "spawn", marks=pytest.mark.slow),
    ],
)
def test_more_processes_leave_what_one_leaves(idc, random_model, tmp_path, number, names, start):
    model = f"model.path={random_model('ip2p')}"
    for name in names:
        result = idc(*COMMANDS[name], model, f"hydra.run.dir={name}")
        assert result.code == 0, result.err

    # All in processes that are there already, as a user may start them on several machines.
    shared = tmp_path / "shared"
    shared.mkdir()
    given = {name: [*COMMANDS[name], model, f"devices={number}", free_port()] for name in names}
    codes, told = members(number, shared, given, start)
    assert codes == [0] * number, told
    assert "done: evaluate" in told[0] and not any(told[1:]), told[1:]  # the first one speaks
    for name in names:
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


BELOW_PROC = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes below /proc")


@BELOW_PROC
@pytest.mark.parametrize(
    ("sent", "to_child", "code", "words"),
    [
        (signal.SIGKILL, True, 1, "process 2 of 2 was killed by SIGKILL"),
        pytest.param(signal.SIGTERM, False, 143, "terminated; the same command continues", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, False, 130, "interrupted; the same command continues", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, False, -9, "", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_dies_ends_the_run_and_it_continues(idc, random_model, sent, to_child, code, words):
    command = ("tsopt", *SMOKE, f"model.path={random_model('ip2p')}", "recipe=none", "hydra.run.dir=run")
    trace = Path("run", "trace.jsonl")
    process = run(Path(), *command, "devices=2")
    wait_for(trace.exists, process)
    (child,) = children_of(process)
    os.kill(child if to_child else process.pid, sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert err.count("\n") == bool(words) and words in err
    deadline = time.monotonic() + 60
    while not is_gone(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert is_gone(child)
    kept = trace.read_bytes().rpartition(b"\n")[0].splitlines()

    result = idc(*command)  # as one process, too, which takes it for the same run
    assert result.code == 0, result.err
    assert "continuing the interrupted run" in result.out and trace.read_bytes().splitlines()[: len(kept)] == kept


@pytest.mark.slow
def test_the_stages_of_compress_are_shared_one_by_one(random_model, tmp_path):
    command = ("compress", *SMOKE, f"model.path={random_model('ip2p')}", "devices=2")
    stages = "compress.stages=[depth_search,finetune,tsopt,evaluate]"
    process = run(tmp_path, *command, stages, "trainer.devices=2", "prune=depth_skip", "hydra.run.dir=run")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert not err and out.count("done:") == 1
    assert (tmp_path / "run" / "evaluate" / "metrics.json").is_file()
    assert json.loads((tmp_path / "run" / "tsopt" / "timing.json").read_text())["devices"] == 2


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("devices=0",), "devices must be between 1 and 1024, got 0"),
        (("devices=auto",), "devices"),
        (("devices=2", "device=mps"), "devices=2 of device=mps, and there is 1 here"),
        (("num_nodes=-1",), "num_nodes must be between 1 and 1024, got -1"),
    ],
)
def test_wrong_numbers_of_devices(idc, random_model, words, error):
    result = idc("tsopt", "experiment=smoke", f"model.path={random_model('ip2p')}", "recipe=none", *words)
    assert result.code == 2 and result.err.count("\n") == 1
    assert error in result.err


def test_what_one_process_cannot_do_is_said_by_the_first(random_model, tmp_path, monkeypatch):
    """The second process alone meets the fault; the run ends as one of a single process does."""
    translate = bench.translate

    def faulty(task, pipeline, examples, *arguments, **settings):
        if os.environ["LOCAL_RANK"] == "1":
            raise IdcError(f"{examples[0].index} cannot be translated")
        return translate(task, pipeline, examples, *arguments, **settings)

    monkeypatch.setattr(bench, "translate", faulty)
    words = ["tsopt", *SMOKE, f"model.path={random_model('ip2p')}", "recipe=none", "devices=2", free_port()]
    codes, told = members(2, tmp_path, {"run": words})
    assert codes == [2, 1]
    assert told[0].endswith("idc: error: 1 cannot be translated\n") and told[1] == ""


def test_a_batch_stays_where_it_was_as_long_as_that_is_fair():
    owners: dict[str, int] = {}
    assert ranks._by_rank(["a", "b", "c", "d"], owners, 2) == [0, 1, 0, 1]
    assert ranks._by_rank(["d", "a"], owners, 2) == [1, 0]
    assert ranks._by_rank(["e", "c", "a"], owners, 2) == [1, 0, 0]
    assert ranks._by_rank(["a", "c"], owners, 2) == [0, 1]
    assert ranks._by_rank(["a", "c"], owners, 2) == [0, 1]  # where it was last
    assert ranks._by_rank(["x"], owners, 4) == [0]
