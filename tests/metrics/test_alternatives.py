"""Beside a compressed plan: what costs as much, image by image, with a verdict that may be no gain."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from idcompress.bench.comparison import System, paired
from idcompress.config import EvaluateConfig
from idcompress.core.cut import Cut
from idcompress.core.plan import Plan
from idcompress.metrics._metric import MetricValue
from idcompress.runs.recipe import Recipe
from idcompress.stages.evaluate import Some, network_passes


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


def test_alternatives_on_some_images_take_fewer_passes(idc, random_model):
    """Evenly spread ones; and the count that is said is what was sampled."""
    plan = Plan.over([999, 700, 400, 100], guidance={"guidance_scale": 1.5, "image_guidance_scale": 1.0})
    recipe = Recipe("ip2p", {"name": "tiny"}, Cut("depth_skip", {"depth": 3}), plan=plan, free_steps=False)
    Path("recipe.json").write_text(json.dumps(recipe.to_json()))
    common = ("task=ip2p", f"model.path={random_model('ip2p')}", "recipe=recipe.json", "num_inference_steps=4")
    common += ("evaluate.latency=false", "evaluate.num_samples=4", "evaluate.metrics=[psnr]", "image_guidance_scale=1")
    result = idc("evaluate", *common, "evaluate.num_alternatives=2", "hydra.run.dir=some", "guidance_scale=1.5")
    assert result.code == 0, result.err
    found = json.loads(Path("some/metrics.json").read_text())
    rows, psnr = found["alternatives"], found["metrics"]["psnr"]
    assert [row["num_images"] for row in rows] == [2, 2, 2]
    assert psnr["notes"]["uniform"] == "on 2 of the 4 images, evenly spread"
    assert "  uniform: on 2 of the 4 images, evenly spread\n" in result.out
    assert psnr["compressed_minus_uniform"]["num_images"] == 2
    assert all(row["metrics"]["psnr"]["compressed_minus_this"]["num_images"] == 2 for row in rows)
    assert len(list(Path("some/images/plain_ddim").iterdir())) == 2
    assert len(list(Path("some/images/compressed").iterdir())) == 4
    said = int(re.search(r"^([\d,]+) network passes", result.out, re.MULTILINE)[1].replace(",", ""))
    shown = 4 * min(4, 4)  # the pruned model at the original's steps, which are pictures of the report
    assert said == 2 * (json.loads(Path("some/timing.json").read_text())["image_steps"] - shown)


def test_the_papers_evaluation_of_controlnet_by_count():
    """5,000 photographs, 20 steps against 15, two guidance passes, and plain plans of 15 steps: docs/benchmarks.md."""
    guidance = {"guidance_scale": 9.0}
    full, cut, original = "full", "cut", Plan.over(range(20, 0, -1), guidance=guidance)
    few, other = (Plan.over(range(n, n - 15, -1), guidance=guidance) for n in (15, 16))
    faster = dataclasses.replace(other, sampler="dpm_solver")
    systems = {
        "original": System(full, original),
        "compressed": System(cut, few),
        "uniform": System(cut, other),
        "plain": System(full, other),
        "plain, faster": System(full, faster),
        "faster": System(cut, faster),
    }
    names = frozenset(["uniform", "plain", "plain, faster", "faster"])

    def passes(number, evaluated):
        settings = EvaluateConfig(num_alternatives=number)
        return network_passes(evaluated, Some(names, 5000, SimpleNamespace(evaluate=settings)))

    everything, first = passes(None, systems), passes(512, systems)
    kept = passes(512, {name: system for name, system in systems.items() if name != "original"})
    assert (everything, first, kept) == (950_000, 411_440, 211_440)
    assert first < everything / 2
