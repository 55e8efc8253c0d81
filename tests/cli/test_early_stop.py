"""A chain whose searches stop early ends in the plan of one whose searches look at all images, and samples less."""

import json
from pathlib import Path

import pytest

KEYS = ("task=ip2p", "num_inference_steps=3", "depth_search.num_samples=8", "depth_search.min_depth=11")
KEYS += ("depth_search.thresholds=[{metric: psnr, bound: 20}]", "tsopt.num_inference_steps=2", "tsopt.num_samples=8")
KEYS += ("tsopt.reference_steps=3", "compress.stages=[depth_search,tsopt]", "timesteps=gamma", "sampler=ddim")


def rows(file):
    return [json.loads(line) for line in Path(file).open()]


def sampled(folder):
    return json.loads((Path(folder) / "timing.json").read_text())["image_steps"]


def plan(folder):
    recipe = json.loads((Path(folder) / "recipe.json").read_text())
    return recipe["cut"], recipe["plan"]


@pytest.fixture
def chains(idc, random_model, monkeypatch):
    """The folders of the same chain with and without early stopping, neither of which finds the other's references."""
    monkeypatch.setattr("idcompress.bench.references.CACHE", Path("cache_early"))
    keys = (*KEYS, f"model.path={random_model('ip2p')}")
    early = idc("compress", *keys, "hydra.run.dir=early")
    assert early.code == 0, early.err
    monkeypatch.setattr("idcompress.bench.references.CACHE", Path("cache_whole"))
    whole = idc("compress", *keys, "early_stop=null", "hydra.run.dir=whole")
    assert whole.code == 0, whole.err
    assert "beyond doubt on 4 images" in early.out
    assert "beyond doubt" not in whole.out
    return Path("early"), Path("whole")


def test_the_plan_is_the_same_and_the_trace_says_what_was_skipped(chains):
    early, whole = chains
    assert plan(early) == plan(whole)
    ours, theirs = (rows(folder / "depth_search/trace.jsonl") for folder in chains)
    assert [(row["depth"], row["passed"]) for row in ours] == [(row["depth"], row["passed"]) for row in theirs]
    assert {(row["num_images"], row["num_skipped"]) for row in ours} == {(4, 4)}
    assert {(row["num_images"], row["num_skipped"]) for row in theirs} == {(8, 0)}
    for row in rows(early / "tsopt/trace.jsonl"):
        assert row["num_images"] + row["num_skipped"] == 8
        assert len(row["per_image"]) == row["num_images"]
        assert row["gamma"]
    assert all(row["num_skipped"] == 0 for row in rows(whole / "tsopt/trace.jsonl"))

    # What was sampled, by the program's own count, and by hand.
    assert sampled(early / "depth_search") == 4 * 3 * 3  # four images at three steps: the reference, depths 12 and 11
    assert sampled(whole / "depth_search") == 2 * sampled(early / "depth_search")
    lists = {tuple(row["timesteps"]) for row in rows(whole / "tsopt/trace.jsonl")}
    first = [timesteps[0] for timesteps in lists].count(999)
    calls = 8 * (2 * len(lists) - (first - 1))  # lists that begin alike share their first call
    assert sampled(whole / "tsopt") == calls  # and nothing for the reference, whose pictures the depth search left
    assert sampled(early / "tsopt") < calls + 4 * 3


def test_what_failed_first_is_kept_for_a_fine_tuning(idc, random_model, monkeypatch):
    monkeypatch.setattr("idcompress.bench.references.CACHE", Path("cache"))
    keys = [key for key in KEYS if not key.startswith(("compress", "depth_search.thresholds"))]
    keys += [f"model.path={random_model('ip2p')}", "depth_search.thresholds=[{metric: psnr, bound: 200}]"]
    result = idc("depth-search", *keys, "hydra.run.dir=run")
    assert result.code == 0, result.err
    assert [(row["depth"], row["num_images"]) for row in rows("run/trace.jsonl")] == [(13, 4), (12, 4)]
    assert len(list(Path("cache").iterdir())) == 4 + 4  # the reference, which is the whole model's, and depth 12
