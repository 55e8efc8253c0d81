"""Beside a compressed plan: what costs as much, image by image, with a verdict that may be no gain."""

import json
from pathlib import Path

import pytest

from idcompress.bench.comparison import paired
from idcompress.metrics._metric import MetricValue


def verdict(differences, *, higher_is_better=True):
    values = {i: 10.0 + d for i, d in enumerate(differences)}
    others = dict.fromkeys(range(len(differences) + 1), 10.0)  # one image has no value of the first
    found = paired(MetricValue(1.0, values), MetricValue(1.0, others), "d", higher_is_better=higher_is_better, seed=0)
    return found.get("d")


def test_the_verdict_follows_the_paired_interval():
    gain = verdict([1.0, 2.0, 3.0, 2.0])
    assert gain["mean"] == 2.0
    assert 1.0 <= gain["interval"][0] < 2.0 < gain["interval"][1] <= 3.0
    assert (gain["num_images"], gain["verdict"]) == (4, "better")
    assert verdict([1.0, 2.0, 3.0, 2.0], higher_is_better=False)["verdict"] == "worse"
    assert verdict([-1.0, -2.0, -3.0])["verdict"] == "worse"
    assert verdict([-1.0, -2.0, -3.0], higher_is_better=False)["verdict"] == "better"
    assert verdict([-1.0, 1.2, -1.1, 1.0])["verdict"] == "no gain"
    assert verdict([0.0, 0.0]) is None  # the same images


def test_evaluate_runs_what_costs_as_much(idc, random_model):
    common = ("task=ip2p", f"model.path={random_model('ip2p')}", "num_inference_steps=6", "evaluate.latency=false")
    common += ("evaluate.num_samples=2", "evaluate.metrics=[psnr,edit_success_rate_mean_colour]")
    result = idc("evaluate", *common, "depth=3", "hydra.run.dir=first")
    assert result.code == 0, result.err
    found = json.loads(Path("first/metrics.json").read_text())
    rows = found["alternatives"]
    costs = found["metrics"]["gmacs"]
    affordable = round(6 * costs["compressed"] / costs["original"])
    assert 1 <= affordable < 6
    plans = [(row["model"], row["sampler"], row["num_inference_steps"]) for row in rows]
    assert plans == [
        ("original", "ddim", affordable),
        ("original", "dpm_solver", affordable),
        ("compressed", "dpm_solver", 6),
    ]
    assert rows[0]["gmacs_ratio"] == pytest.approx(affordable * costs["original"] / (6 * costs["compressed"]))
    assert rows[2]["gmacs_ratio"] == 1
    assert [row.get("images") for row in rows] == ["plain_ddim", "plain_dpm_solver", None]
    shown = {folder.name: {path.name for path in folder.iterdir()} for folder in Path("first/images").iterdir()}
    assert shown["plain_ddim"] == shown["plain_dpm_solver"] == shown["original"] and len(shown["original"]) == 2
    compressed = found["metrics"]["psnr"]["compressed"]
    for row in rows:
        psnr = row["metrics"]["psnr"]
        assert psnr["compressed_minus_this"]["mean"] == pytest.approx(compressed - psnr["value"])
        assert set(row["metrics"]["edit_success_rate_mean_colour"]) == {"value"}  # the same for every plan
    assert result.out.count("plain: original model") == 2
    result = idc("evaluate", *common, "recipe=first/evaluated_recipe.json", "evaluate.alternatives=false")
    assert result.code == 0, result.err
    (off,) = Path("outputs").glob("ip2p/*/evaluate/*/metrics.json")
    assert "alternatives" not in json.loads(off.read_text())
