"""The rehearsal on a small stand-in: what a command took, stored beside the rows of the others."""

import json

import pytest

from scripts import full_size, rehearsal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return full_size.write_pipeline("ip2p", tmp_path_factory.mktemp("small") / "ip2p", small=True, image_px=64)


def test_a_command_is_measured_in_a_process_of_its_own(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    other = {"arguments": ["report"], "exit_code": 0, "seconds": 1, "cpu_seconds": 1, "peak_gib": 1, "unet_calls": 0}
    out = tmp_path / "full_size.json"
    out.write_text(json.dumps({"version": 1, "tasks": {"ip2p": {"rows": [other], "image_px": 64}}}))
    arguments = ["ip2p", str(folder), "--out", str(out), "--work", str(tmp_path / "work"), "--only"]
    rehearsal.main([*arguments, "translate"])
    stored = json.loads(out.read_text())
    kept, row = stored["tasks"]["ip2p"]["rows"]
    assert kept == other
    assert row["unet_calls"] == 3  # a call per step, guidance inside it
    assert row["exit_code"] == 0
    assert row["seconds"] > 0
    assert 0.1 < row["peak_gib"] < 9
    assert (tmp_path / "work/outputs").is_dir()
    assert not (tmp_path / "outputs").exists()
    assert f"| `ip2p`, 64 | `translate` | {row['seconds']:.0f} |" in rehearsal.table(stored)
    monkeypatch.setattr(rehearsal, "FEW", ["num_inference_steps=0"])
    with pytest.raises(SystemExit):
        rehearsal.main([*arguments, "translate"])
    assert json.loads(out.read_text())["tasks"]["ip2p"]["rows"][-1]["exit_code"] == 2
