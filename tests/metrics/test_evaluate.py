"""An evaluation: portions that no value shows, costs without milliseconds of narrow networks, images kept apart."""

import json
from pathlib import Path

import pytest
import tiny_random

from idcompress.costs.latency import is_full_width
from idcompress.metrics._metric import MetricValue, in_words, perfect_ones
from idcompress.models.official import meta_components
from idcompress.stages import evaluate

RUN = ("task=ip2p", "num_inference_steps=2", "evaluate.metrics=[psnr,edit_psnr]", "report.num_images=2")


def run(idc, random_model, name, *arguments):
    result = idc("evaluate", *RUN, f"model.path={random_model('ip2p')}", *arguments, f"hydra.run.dir={name}")
    assert result.code == 0, result.err
    return json.loads(Path(name, "metrics.json").read_text()), result.out


def files(folder):
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix in (".png", ".csv"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_portions_show_in_nothing(idc, random_model, monkeypatch):
    arguments = ("depth=9", "evaluate.num_samples=3", "evaluate.latency=false")
    whole, _ = run(idc, random_model, "whole", *arguments)
    monkeypatch.setattr(evaluate, "PORTION", 2)
    parts, _ = run(idc, random_model, "parts", *arguments)
    for found in (whole, parts):
        assert sum(found["timing"]["seconds"].values()) == pytest.approx(found["timing"].pop("wall_seconds"))
        names = set(found.pop("timing")["seconds"])
        assert {"compressed/denoise", "compressed/decode", "measure", "costs", "files"} <= names
        assert any(name.startswith("original model, 2 uniform steps by dpm_solver/") for name in names)
    assert parts == whole
    assert (whole["num_images"], whole["num_photographs"], whole["num_photographs_seen"]) == (3, 3, 0)
    assert files("whole") == files("parts")
    assert len(list(Path("parts/images/depth_skipped").iterdir())) == 2


def test_narrow_networks_get_ratios_bytes_and_calls(idc, random_model):
    arguments = ("depth=9", "evaluate.num_samples=1", "evaluate.alternatives=false", "image_guidance_scale=1.5")
    found, out = run(idc, random_model, "narrow", *arguments)
    rows = found["metrics"]
    assert [rows["latency_ms"][system] for system in evaluate.SYSTEMS] == [None] * 3
    assert "ms" not in out.split()
    assert "of the original's time" in out
    assert rows["network_calls"]["original"] == 2 * 3
    assert rows["weights_mb"]["original"] == pytest.approx(4e-6 * rows["params"]["original"])
    assert rows["weights_mb"]["ratio"] == pytest.approx(rows["params"]["ratio"])
    row = rows["latency_ms"]
    assert row["ratio"] > 0 and row["denoising_ratio"] > 0
    stages = row["stages"]
    assert set(stages["original"]) == set(stages["compressed"]) == {"encode", "denoise", "decode", "other"}
    assert sum(stages["original"].values()) == pytest.approx(1)
    published = meta_components("ip2p")["unet"]
    assert is_full_width(published) and not is_full_width(tiny_random.unet())


def test_photographs_that_a_search_has_seen_are_counted_where_the_user_insists(idc, random_model):
    common = ("recipe=none", "depth_search.num_samples=2", "depth_search.thresholds=[{metric: psnr, bound: 0}]")
    result = idc(
        "depth-search", *RUN[:2], *common, f"model.path={random_model('ip2p')}", "depth_search.min_depth=13",
        "hydra.run.dir=search",
    )  # fmt: skip
    assert result.code == 0, result.err
    arguments = ("recipe=search/recipe.json", "evaluate.latency=false", "evaluate.num_samples=3")
    found, out = run(idc, random_model, "seen", *arguments, "data.split=search")
    assert (found["num_photographs"], found["num_photographs_seen"]) == (3, 2)
    assert "2 of the photographs were seen by a search of this recipe (data.split=search)" in out
    found, out = run(idc, random_model, "unseen", *arguments)
    assert found["num_photographs_seen"] == 0
    assert "seen by a search" not in out


def test_no_number_is_perfect_only_where_images_equal_their_references(idc, random_model):
    arguments = ("evaluate.num_samples=1", "evaluate.latency=false", "evaluate.alternatives=false")
    found, _ = run(idc, random_model, "cut", *arguments, "depth=9", "prompt=make it so")
    psnr, edit = (found["metrics"][name] for name in ("psnr", "edit_psnr"))
    assert psnr["original"] is None and psnr["compressed"] is not None
    assert psnr["perfect"] == ["original"]
    assert [edit[system] for system in evaluate.SYSTEMS] == [None] * 3  # nobody knows the true result
    assert "perfect" not in edit
    found, _ = run(idc, random_model, "whole", *arguments)
    assert found["metrics"]["psnr"]["perfect"] == list(evaluate.SYSTEMS)


def test_a_missing_mean_is_shown_as_what_it_means():
    nothing, same, some = (
        MetricValue(None, {}, "nothing"),
        MetricValue(None, {}, perfect=True),
        MetricValue(2.5, {0: 2.5}),
    )
    assert [in_words(v.value, perfect=v.perfect) for v in (nothing, same, some)] == ["-", "equal", "2.500"]
    assert perfect_ones({"a": nothing, "b": same, "c": some}) == {"perfect": ["b"]}
    assert perfect_ones({"a": nothing, "c": some}) == {}
