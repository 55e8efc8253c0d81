"""The rehearsal on a small stand-in: what a command took, stored beside the rows of the others."""

import json

import pytest

from idcompress import Recipe
from scripts import full_size, rehearsal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return full_size.write_pipeline("ip2p", tmp_path_factory.mktemp("small") / "ip2p", small=True, image_px=64)


def test_a_command_is_measured_in_a_process_of_its_own(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    other = {"command": "idc report", "seconds": 1.0, "of the CPU": 1.0, "peak memory, GiB": 1.0, "U-Net calls": 0}
    out = tmp_path / "full_size.json"
    out.write_text(json.dumps({"version": 1, "values": {"ip2p": [other]}}))
    arguments = ["ip2p", str(folder), "--out", str(out), "--work", str(tmp_path / "work"), "--only", "translate"]
    with pytest.raises(SystemExit) as end:
        rehearsal.main(arguments)
    assert end.value.code == 0
    kept, row = json.loads(out.read_text())["values"]["ip2p"]
    assert kept == other
    assert row["command"] == "idc translate recipe=none image=PHOTO prompt=make it blue"
    assert row["U-Net calls"] == 3  # a call per step, guidance inside it
    assert row["seconds"] > 0
    assert 0.1 < row["peak memory, GiB"] < 9
    assert (tmp_path / "work/outputs").is_dir()
    assert not (tmp_path / "outputs").exists()
    monkeypatch.setattr(rehearsal, "FEW", ["num_inference_steps=0"])
    with pytest.raises(SystemExit) as end:
        rehearsal.main(arguments)
    assert end.value.code == 2
    assert json.loads(out.read_text())["values"]["ip2p"] == [other]


def test_a_plan_goes_from_its_search_to_an_exported_folder(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    out, work = tmp_path / "full_size.json", tmp_path / "work"
    with pytest.raises(SystemExit) as end:
        rehearsal.main(["ip2p", str(folder), "--out", str(out), "--work", str(work), "--plan"])
    assert end.value.code == 0
    rows = json.loads(out.read_text())["values"]["ip2p"]
    assert [row["command"].split()[1] for row in rows] == ["plan", "evaluate", "translate", "export"]
    assert rows[0]["command"] == "idc plan recipe=none" and rows[0]["U-Net calls"] > 10
    recipe = Recipe.load(work / "planned")
    assert not recipe.plan.is_plain
    assert (work / "planned/pipeline.py").is_file()
