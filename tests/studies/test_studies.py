"""Every study on random models: what it leaves behind, its resumption, and images that no search has seen."""

import csv
import json
from pathlib import Path

import pytest

# The least that each study does, in steps and images.
SMALL = {
    "guidance": [
        "study.scales=[1.0,1.5]",
        "study.num_inference_steps=[2]",
        "study.num_searched=1",
        "study.reference_steps=4",
    ],
}


@pytest.fixture
def study(idc, random_model):
    """Run a study as a user would: its name and further overrides -> the result of `idc` and the run folder."""

    def run(name: str, *overrides: str, task: str = "ip2p"):
        arguments = [f"study={name}", f"task={task}", f"model.path={random_model(task)}", "num_inference_steps=4"]
        small = [*SMALL[name], "study.num_evaluated=2"]
        result = idc("study", *arguments, *small, *overrides)
        return result, next(iter(sorted(Path().glob("outputs/*/*/study/*"))), None)

    return run


@pytest.mark.parametrize("name", SMALL)
def test_what_a_study_leaves(study, name):
    result, folder = study(name)
    assert result.code == 0, result.err
    found = json.loads((folder / "study.json").read_text())
    assert found["study"] == name and found["rows"] and found["outcome"] in result.out
    assert all(row.keys() == found["rows"][0].keys() for row in found["rows"])
    rows = list(csv.DictReader((folder / "study.csv").open()))
    assert len(rows) == len(found["rows"])
    assert (folder / "study.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "study.svg").read_text()
    for page in ("report.html", "report.md"):
        text = (folder / page).read_text()
        assert "data:image/png;base64," in text and "scikit-image" in text
    assert not (folder / "recipe.json").exists()
