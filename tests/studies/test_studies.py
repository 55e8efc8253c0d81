"""Every study on random models: what it leaves behind, its resumption, and images that no search has seen."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from idcompress.studies import guidance, instructions

GIVEN = "timesteps.gamma=0.8"  # no search: random models walk far
SEARCH = ["study.reference_steps=4", GIVEN]
# The least that each study does.
SMALL = {
    "guidance": ["study.num_searched=1", "study.scales=[1.0,1.5]", "study.num_inference_steps=[2]", *SEARCH],
    "depth_skip": ["study.num_inference_steps=[2]", "depth=9", "study.num_searched=1", *SEARCH],
    "order": ["study.num_inference_steps=[2]", "depth_search.min_depth=12", "study.num_searched=1", *SEARCH],
    "step_counts": ["study.num_inference_steps=[2]", "study.num_searched=1", *SEARCH],
    "solver": ["study.num_inference_steps=[3]", *SEARCH],
    "stochastic": [
        "study.num_inference_steps=[2]",
        "study.searched_steps=2",
        "study.num_searched=1",
        "evaluate.metrics=[edit_psnr,psnr]",
        *SEARCH,
    ],
    "instructions": [
        "study.depths=[13,9]",
        "study.num_inference_steps=2",
        "task.prompts=[make it grayscale,flip it horizontally]",
    ],
}


PLAN_PARTS = ("split", "depth", "sampler", "guidance", "timesteps", "against")


@pytest.fixture
def study(idc, random_model):
    """Run a study as a user would: its name and further overrides -> the result of `idc`, and its run folder."""

    def run(name: str, *overrides: str, task: str = "ip2p"):
        arguments = [f"study={name}", f"task={task}", f"model.path={random_model(task)}", "study.num_evaluated=2"]
        result = idc("study", *arguments, *SMALL[name], *overrides)
        return result, next(iter(sorted(Path().glob("outputs/*/*/study/*"))), None)

    return run


def trace(folder: Path) -> list[dict]:
    path = folder / "trace.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def check_what_it_left(name: str, result, folder: Path) -> dict:
    """The files of a study's run folder; returns study.json."""
    assert result.code == 0, result.err
    found = json.loads((folder / "study.json").read_text())
    assert found["study"] == name and found["rows"] and found["outcome"] in result.out
    assert all(row.keys() == found["rows"][0].keys() for row in found["rows"])
    assert len(list(csv.DictReader((folder / "study.csv").open()))) == len(found["rows"])
    assert (folder / "study.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "study.svg").read_text()
    for page in ("report.html", "report.md"):
        text = (folder / page).read_text()
        assert "data:image/png;base64," in text and found["facts"]["data"] in text
    assert not (folder / "recipe.json").exists()
    plans = [json.dumps([row[part] for part in PLAN_PARTS]) for row in trace(folder)]
    assert len(plans) == len(set(plans)) > 0
    return found


@pytest.mark.parametrize("name", ["depth_skip", "guidance", "order", "step_counts"])
def test_a_study_fits_what_its_sampler_wants(study, name):
    """Every result of a list by the fitted sampler has numbers, and they make a difference."""
    found = check_what_it_left(name, *study(name, "sampler=fitted"))
    (folder,) = Path().glob("outputs/*/*/study/*")
    results = [row for row in trace(folder) if row["sampler"] == "fitted" and row["split"] == "evaluate"]
    assert results and all(len(row["coefficients"]) == len(row["timesteps"]) for row in results)
    assert found["rows"]


@pytest.mark.parametrize("name", sorted({*SMALL} - {"solver"}))
def test_what_a_study_leaves(study, name):
    check_what_it_left(name, *study(name))


def test_an_interrupted_study_goes_on_with_its_trace(study, tmp_path, monkeypatch):
    """On one folder of photographs without splits: even so the results are of others than the search's."""
    for number in range(4):
        Image.effect_noise((64, 64), 10 + number).convert("RGB").save(tmp_path / f"{number}.png")
    overrides = (f"data.path={tmp_path}", "study.num_searched=2")
    result, folder = study("solver", *overrides)
    found = check_what_it_left("solver", result, folder)
    for row in found["rows"]:
        assert row["gain (dB)"]["mean"] == pytest.approx(row["searched (dB)"] - row["uniform (dB)"], abs=1e-9)
    assert "results: 2 images of 2 photographs that no search has seen; searches: 2 of 2 others" in found["notes"]

    rows, info = trace(folder), json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "finished": False}))
    monkeypatch.setattr("idcompress.bench.bench.Bench.images", None)  # sampling would fail
    result, again = study("solver", *overrides)
    assert again == folder and trace(folder) == rows
    assert check_what_it_left("solver", result, folder) == found


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("guidance", ["study.num_searched=1", "study.scales=[a]"], "study.scales must be a list of float, got ['a']"),
        ("solver", ["study.num_inference_steps=[0]"], "study.num_inference_steps must be at least 1"),
        ("solver", ["data.split=search"], "gives search and results the same photographs"),
        ("depth_skip", ["depth=13"], "wants a depth below 13"),
        ("stochastic", ["evaluate.metrics=[psnr]"], "compares with the truth or the input"),
        ("instructions", ["task.prompts=[make it grayscale]"], "of which some are easy and some are hard"),
    ],
)
def test_mistakes_are_a_line(study, name, overrides, message):
    result, _ = study(name, *overrides)
    assert result.code == 2 and message in result.err, result.err
    assert len(result.err.splitlines()) == 1


def test_a_task_without_guidance_is_a_line(study):
    result, _ = study("guidance", task="stablesr")
    assert result.code == 2 and "task=stablesr samples without" in result.err, result.err


@pytest.mark.parametrize("name", ["guidance", "depth_skip"])
def test_a_strategy_without_gamma_is_a_line(idc, name):
    result = idc("study", f"study={name}", "timesteps=uniform")
    assert result.code == 2 and f"study={name} compares gammas; timesteps=uniform has none" in result.err


def test_words_for_gammas():
    assert guidance._trend([1.6, 1.6]) == "stays at 1.6"
    assert guidance._trend([0.5, 0.5, 0.8]) == "rises from 0.5 to 0.8"
    assert guidance._trend([2.0, 1.5]) == "falls from 2 to 1.5"
    assert guidance._trend([1.5, 2.0, 1.6]) == "has no trend (1.5 to 2)"


def test_the_depth_that_edits_bear_ends_before_the_first_loss():
    column = "edit PSNR over full depth's (dB)"
    worse = {"verdict": "worse", "mean": -2.0}
    changes = {13: {}, 9: {**worse, "mean": -0.01}, 7: {"verdict": "no gain", "mean": -3.0}, 6: worse, 5: {}}
    rows = [{"depth": depth, column: change} for depth, change in changes.items()]
    assert instructions._kept(rows, 13, 0.1) == 7
    assert instructions._kept(rows[3:], 13, 0.1) == 13
