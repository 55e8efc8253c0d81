"""The curve over image guidance on a random model: the systems at every scale, and what a recipe brings along."""

import json
from pathlib import Path

import pytest

SMALL = (
    "study=guidance_curve",
    "task=ip2p",
    "study.scales=[1.0,1.5]",
    "study.num_searched=1",
    "study.num_evaluated=1",
    "study.num_inference_steps=2",
    "study.reference_steps=3",
    "depth=7",
    "timesteps.gamma=0.8",
)


@pytest.fixture
def study(idc, random_model):
    def run(*overrides):
        result = idc("study", *SMALL, f"model.path={random_model('ip2p')}", *overrides)
        files = list(Path().glob("outputs/*/*/study/*/study.json"))
        return result, json.loads(files[0].read_text()) if files else None

    return run


def test_a_point_per_scale_of_every_system(study):
    result, found = study()
    assert result.code == 0, result.err
    assert found["outcome"] in result.out
    lines = found["charts"][0]["series"]
    assert [line["label"] for line in lines] == [
        "compressed: depth 7, 2 steps",
        "depth 7, 3 uniform steps",
        "original, 3 uniform steps",
        "original, 1 by ddim",
        "original, 1 by dpm_solver",
    ]
    for line in lines:
        rows = [row for row in found["rows"] if row["system"] == line["label"]]
        assert [row["image guidance"] for row in rows] == [1.0, 1.5]
        assert [[row["edit_psnr"], row["input_psnr"]] for row in rows] == line["points"]
        assert line["points"][0] != line["points"][1]
        compared = [row["compressed over it, edit_psnr"] for row in rows]
        assert all(c is None for c in compared) == line["label"].startswith("compressed")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=stablesr", "study.metrics=[psnr,ssim]"], "task=stablesr has none; want task=ip2p"),
        (["task=stablesr"], "study.metrics must be a list of str, got None"),
        (["study.metrics=[psnr]"], "study.metrics must be two"),
        (["study.metrics=[psnr,ssim]"], "study.metrics: psnr: no image of this set has anything to compare with"),
    ],
)
def test_mistakes_are_a_line(study, overrides, message):
    result, _ = study(*overrides)
    assert result.code == 2 and message in result.err, result.err
    assert len(result.err.splitlines()) == 1
