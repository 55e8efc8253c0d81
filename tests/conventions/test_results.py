"""Stored results can be measured again: their commands are those of scripts.results, and those can be composed."""

import json
import shlex

import pytest

from scripts.benchmarks import RESULTS as FOLDER
from scripts.results import RESULTS, of_comparison, of_curve, of_tunings

OTHERS = {"latency_h200", "full_size", "full_size_plan"}  # of scripts of their own, which say how they are made


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_a_stored_result_has_a_command_that_measures_it(name):
    if name not in OTHERS:
        assert json.loads((FOLDER / f"{name}.json").read_text())["command"] == RESULTS[name].command


@pytest.mark.parametrize("name", [name for name, result in RESULTS.items() if result.command.startswith("idc ")])
def test_commands_can_be_composed(idc, name):
    words = [word for word in shlex.split(RESULTS[name].command)[1:] if word != "-m"]
    if "-m" in RESULTS[name].command:  # lists are sweeps there
        words = [word.split(",")[0] if "[" not in word else word for word in words]
    result = idc(*words, "--cfg", "job")
    assert result.code == 0, result.err


def test_tables_of_runs(tmp_path):
    trace = [
        {"depth": depth, "params": params, "metrics": {"psnr": psnr}, **({} if psnr else {"perfect": ["psnr"]})}
        for depth, params, psnr in ((3, 400, None), (2, 100, 31.5))
    ]
    (tmp_path / "trace.jsonl").write_text("\n".join(map(json.dumps, trace)))
    curve = of_curve(tmp_path)["curve"]
    assert [list(row.values()) for row in curve] == [["3", "100%", "exact"], ["2", "25%", 31.5]]

    for depth in (2, 10):
        (tmp_path / str(depth)).mkdir()
        tuned = {"depth": depth, "steps": 60, "before": {"psnr": 20.0 + depth}, "after": {"psnr": 30.0}}
        (tmp_path / str(depth) / "metrics.json").write_text(json.dumps(tuned))
    assert [row["depth"] for row in of_tunings(tmp_path)["recovery"]] == ["10", "2"]

    lead = {"mean": 2.0, "interval": [1.0, 3.0], "verdict": "better"}
    plain = {"value": 30.0, "unit": "dB", "by_kind": {"hard": {"value": 25.0}}}
    common = {"block": "", "num_inference_steps": 5, "macs_ratio": 0.1, "params": 7}
    rows = [
        {**common, "label": "uniform", "plain": True, "search": None, "metrics": {"psnr": plain}},
        {
            **common,
            "label": "ours",
            "plain": False,
            "search": {"step_images": 40, "seconds": 1.6},
            "metrics": {"psnr": {**plain, "value": 32.0, "minus_plain": lead}},
        },
    ]
    (tmp_path / "compare.json").write_text(json.dumps({"rows": rows}))
    uniform, ours = of_comparison(tmp_path)["rows"]
    assert uniform["hard ones"] == 25.0 and uniform["search: step-images"] is None
    assert ours["more than the best plain row"] == lead and ours["seconds"] == 2
