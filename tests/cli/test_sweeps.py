"""Sweeps by every launcher: a failing job stops no other, repeating runs what is missing, and one table ends them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from idcompress import sweeps

LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra.launcher.n_jobs=2",),
    "submitit_local": ("hydra.launcher.timeout_min=5",),
}
FEW = ("experiment=smoke", "evaluate.num_samples=1", "evaluate.metrics=[psnr]", "evaluate.alternatives=false")


def photographs(folder):
    Path(folder).mkdir()
    for shade in range(2):
        Image.effect_noise((64, 64), 30 + shade).convert("RGB").save(f"{folder}/{shade}.png")


def rows(folder):
    return json.loads((Path(folder) / "compare.json").read_text())["rows"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_survives_a_failing_job_and_goes_on_with_it(idc, random_model, launcher):
    photographs("one")
    sweep = ["evaluate", *FEW, f"model.path={random_model('ip2p')}", "recipe=none", "depth=11", "num_inference_steps=2"]
    sweep += ["prompt=make it darker", "-m", "data.path=one,two", "hydra.sweep.dir=swept"]
    sweep += [f"hydra/launcher={launcher}", *LAUNCHERS[launcher]]
    failed = idc(*sweep)
    assert failed.code == 2, failed.err
    (error,) = [line for line in failed.err.splitlines() if "idc: error" in line]
    assert error.startswith("idc: error: job 1 (data.path=two): ") and "Traceback" not in failed.err
    assert [row["label"] for row in rows("swept/compare")] == ["0"], "a table of what there is"
    before = Path("swept/0/run.json").read_bytes()
    if launcher != "basic":
        return  # what follows is the jobs' own doing, whoever starts them, and further processes are seconds

    photographs("two")
    done = idc(*sweep)
    assert done.code == 0, done.err
    assert Path("swept/0/run.json").read_bytes() == before, "what was finished is not run again"
    assert [row["label"] for row in rows("swept/compare")] == ["0 data.path=one", "1 data.path=two"]
    assert "data.path=two" in done.out and "swept/compare/report.html" in done.out


def test_a_finished_sweep_stays_and_damage_is_mended(idc, random_model):
    sweep = ["evaluate", *FEW, f"model.path={random_model('ip2p')}", "recipe=none", "depth=11", "num_inference_steps=2"]
    sweep += ["-m", "seed=0,1", "hydra.sweep.dir=swept"]
    assert idc(*sweep).code == 0
    left = {path: path.read_bytes() for path in Path("swept").rglob("run.json")}
    assert len(left) == 3
    again = idc(*sweep)
    assert again.code == 0 and again.out.count("finished before") == 2
    assert {path: path.read_bytes() for path in Path("swept").rglob("run.json")} == left

    table = Path("swept/1/per_image.csv")
    whole = table.read_bytes()
    table.write_bytes(whole[:-9])
    mended = idc(*sweep)
    assert mended.code == 0 and "per_image.csv was changed or damaged" in mended.out + mended.err
    assert table.read_bytes() == whole and Path("swept/0/run.json").read_bytes() == left[Path("swept/0/run.json")]


def test_a_sweep_over_tasks_strategies_and_budgets_ends_with_one_table(idc):
    sweep = ["compress", *FEW, "compress.stages=[tsopt,evaluate]", "tsopt.num_samples=1", "evaluate.num_samples=2"]
    sweep += ["-m", "task=ip2p,controlnet", "timesteps=uniform,quadratic", "tsopt.num_inference_steps=1,2"]
    result = idc(*sweep, "hydra.sweep.dir=swept")
    assert result.code == 0, result.err
    written = json.loads(Path("swept/compare/compare.json").read_text())
    assert written["blocks"] == ["ip2p", "controlnet"] and len(written["rows"]) == 8
    label = "5/evaluate task=controlnet timesteps=uniform tsopt.num_inference_steps=2"
    row = written["rows"][5]
    assert (row["label"], row["block"], row["num_inference_steps"]) == (label, "controlnet", 2)
    first = [row["name"] for row in written["rows"] if "minus_first" not in row["metrics"]["psnr"]]
    assert first == ["0/evaluate", "4/evaluate"], "each task's rows are held against its own first"


def test_a_lost_process_is_one_line():
    from joblib.externals.loky.process_executor import TerminatedWorkerError
    from submitit.core.utils import UncompletedJobError

    killed = TerminatedWorkerError("A worker was terminated.\n\nexit codes {SIGKILL(-9)}")
    for error in (killed, UncompletedJobError("x")):
        line = str(sweeps.lost_job(error))
        assert line.startswith("the process of a job ended early: ") and "\n" not in line
    assert sweeps.lost_job(ValueError("a fault of the program")) is None
