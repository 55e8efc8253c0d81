"""Multi-depth against one depth on a random model: the table by its definition, one plan by itself, and the trace."""

import json
from pathlib import Path

import pytest

IMAGES = ("task=ip2p", "study.num_searched=1", "study.num_evaluated=2", "study.reference_steps=5")
# Two metrics, each with a slack, as Tab. S6 has them.
PLANS = (
    "study=multi_depth",
    "study.depths=[5,9]",
    "study.num_inference_steps=3",
    "study.metrics=[psnr,ssim]",
    "study.quality_slack=[3,0.01]",
)


@pytest.fixture
def study(idc, random_model):
    """Run a study -> the result of `idc`, the newest run folder and its study.json."""

    def run(*overrides):
        result = idc("study", *IMAGES, f"model.path={random_model('ip2p')}", *overrides)
        folders = sorted(Path().glob("outputs/*/*/study/*/study.json"), key=lambda path: path.stat().st_mtime)
        return result, *((folders[-1].parent, json.loads(folders[-1].read_text())) if folders else (None, None))

    return run


def test_every_plan_once_and_the_choice_on_other_images(study):
    result, folder, found = study(*PLANS)
    assert result.code == 0, result.err
    assert found["outcome"] in result.out
    trace = (folder / "trace.jsonl").read_text()
    rows = [json.loads(line) for line in trace.splitlines()]
    assert [(row["split"], row["start"]) for row in rows] == [("search", 0), ("evaluate", 0), ("evaluate", 1)]
    assert rows[0]["network_calls"] == 2 * 2 + 4 and len(rows[0]["values"]) == 4
    assert "8 times per batch of images for 4 plans: 66.67% of the 12 calls" in found["notes"][1]

    table = found["rows"]
    singles = {row["depth"]: row for row in table if row["sought"] == "this depth at every step"}
    assert [row["depth"] for row in table] == [5] * 5 + [9] * 5
    assert [row["sought"] for row in table[:5]] == [
        "this depth at every step",
        "least MACs at its size and quality",
        "best psnr at its MACs",
        "best ssim at its MACs",
        "least MACs at its quality",
    ]
    for row in table:
        used, single = {int(depth) for depth in row["plan"].split("-")}, singles[row["depth"]]
        assert row["MACs to the depth's (%)"] == pytest.approx(100 * (row["MACs (%)"] / single["MACs (%)"] - 1))
        assert row["parameters (%)"] == singles[max(used)]["parameters (%)"]
        assert max(used) == row["depth"] or "size" not in row["sought"]
        assert row["MACs to the depth's (%)"] <= 1 or not row["sought"].startswith("best")
    assert singles[9]["plan"] == "9-9" and singles[9]["psnr difference"] == {}

    # interrupted and started again: nothing is sampled twice
    (folder / "run.json").write_text(json.dumps({**json.loads((folder / "run.json").read_text()), "finished": False}))
    _, again, repeated = study(*PLANS)
    assert again == folder and repeated["rows"] == table
    assert (folder / "trace.jsonl").read_text() == trace

    # one depth for all steps is what the task's own sampling makes of it
    result, _, alone = study("study=step_counts", "depth=9", "study.num_inference_steps=[3]", "timesteps.gamma=0.8")
    assert result.code == 0, result.err
    assert alone["rows"][0]["uniform (dB)"] == singles[9]["psnr (dB)"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.depths=[5,14]", "study.depths must be between 1 and 13 for this model, got 14"),
        ("study.quality_slack=[0.2]", "one bound for each of study.metrics"),
        ("study.metrics=[psnr,edit_psn]", "did you mean 'edit_psnr'?"),
    ],
)
def test_mistakes_are_a_line(study, override, message):
    result, *_ = study(*PLANS, override)
    assert result.code == 2 and message in result.err, result.err
    assert len(result.err.splitlines()) == 1
