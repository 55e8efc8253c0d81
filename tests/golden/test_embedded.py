"""Searches on the embedded models: decisions exactly, values to a tolerance. `--update-golden` rewrites the traces."""

import json
from pathlib import Path

import pytest

from idcompress.models.tiny import tiny_folder

HERE = Path(__file__).resolve().parent
TOLERANCE_DB = 0.05
KEYS = ("num_inference_steps=8", "depth_search.num_samples=2", "tsopt.num_samples=2", "tsopt.reference_steps=8")


def embedded(task: str) -> None:
    try:
        tiny_folder(task)
    except LookupError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("task", ["ip2p", "controlnet", "stablesr"])
def test_golden_traces(idc, task, request):
    embedded(task)
    keys = (f"task={task}", *KEYS, "tsopt.num_inference_steps=4", "compress.stages=[depth_search,tsopt]")
    keys += ("timesteps=gamma", "sampler=ddim")
    result = idc("compress", *keys)
    assert result.code == 0, result.err
    run = next(Path("outputs").glob("*/tiny/compress/*"))
    depths = [json.loads(line) for line in (run / "depth_search/trace.jsonl").open()]
    lists = [json.loads(line) for line in (run / "tsopt/trace.jsonl").open()]
    recipe = json.loads((run / "recipe.json").read_text())
    found = {
        "depth": recipe["cut"]["depth"],
        "timesteps": [step["timestep"] for step in recipe["plan"]["steps"]],
        "depths": [{"depth": r["depth"], "passed": r["passed"], "psnr": r["metrics"]["psnr"]} for r in depths],
        "lists": [{"gamma": r["gamma"], "timesteps": r["timesteps"], "psnr": r["psnr"]} for r in lists],
    }
    file = HERE / f"{task}.json"
    if request.config.getoption("--update-golden"):
        print(f"before: {file.read_text() if file.is_file() else 'nothing'}")
        file.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(file.read_text())
    assert decisions(found) == decisions(golden)
    for ours, theirs in zip(values(found), values(golden), strict=True):
        assert ours == pytest.approx(theirs, abs=TOLERANCE_DB)


def decisions(trace: dict) -> dict:
    rows = [{k: v for k, v in row.items() if k != "psnr"} for row in (*trace["depths"], *trace["lists"])]
    return {"depth": trace["depth"], "timesteps": trace["timesteps"], "rows": rows}


def values(trace: dict) -> list:
    # Beyond 60 dB the difference is rounding, and so is its logarithm.
    psnr = [row["psnr"] for row in (*trace["depths"], *trace["lists"])]
    return [None if value is None else min(value, 60.0) for value in psnr]


@pytest.mark.parametrize("task", ["ip2p", "controlnet", "stablesr"])
def test_smoke(idc, task):
    """The command of the README's smallest promise: every stage on the embedded model in seconds."""
    embedded(task)
    result = idc("compress", "experiment=smoke", f"task={task}")
    assert result.code == 0, result.err
    report = next(Path("outputs").glob("*/tiny/compress/*/report/report.html")).read_text()
    assert report.count("data:image/png;base64,") >= 10
