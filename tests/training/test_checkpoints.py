"""Checkpoints: streamed beside the target, whole or absent, the one before kept, every byte checked."""

import resource
from pathlib import Path

import pytest
import torch

from idcompress.adapters import checkpoints
from idcompress.errors import IdcError


def save(folder, value, size=1000):
    state = {"state_dict": {"w": torch.full((size,), float(value))}, "global_step": value}
    checkpoints.StreamedCheckpoints().save_checkpoint(state, folder / checkpoints.CHECKPOINT)


def step(path):
    return checkpoints.check(path)["global_step"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_one_before_is_kept(tmp_path):
    for value in (1, 2, 3):
        save(tmp_path, value)
    assert names(tmp_path) == ["last.ckpt", "previous.ckpt"]
    assert (step(tmp_path / "last.ckpt"), step(tmp_path / "previous.ckpt")) == (3, 2)
    assert checkpoints.newest(tmp_path) == (tmp_path / "last.ckpt", [])


def test_nothing_goes_through_memory_or_the_folder_of_temporary_files(tmp_path, monkeypatch):
    """64 MB are written while 16 MB of further address space are allowed, and $TMPDIR is no folder at all."""
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    state = {"state_dict": {f"w{i}": torch.ones(250_000) for i in range(64)}}
    save(tmp_path, 0)  # what torch allocates once
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 16_000_000, limits[1]))
    try:
        checkpoints.StreamedCheckpoints().save_checkpoint(state, tmp_path / "large.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    read = checkpoints.check(tmp_path / "large.ckpt")
    assert all(torch.equal(read["state_dict"][name], tensor) for name, tensor in state["state_dict"].items())


def test_a_full_disk_leaves_what_was_there(tmp_path):
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path, 2, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["last.ckpt"]
    assert step(tmp_path / "last.ckpt") == 1


def test_what_a_killed_process_left_goes(tmp_path):
    (tmp_path / ".last.ckpt.abc").write_bytes(b"half")
    save(tmp_path, 1)
    assert names(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize("harm", ["cut short", "a bit", "absent"])
def test_a_broken_one_falls_back(tmp_path, harm):
    for value in (1, 2):
        save(tmp_path, value)
    last = tmp_path / "last.ckpt"
    data = bytearray(last.read_bytes())
    if harm == "a bit":
        place = data.index(torch.tensor([2.0]).numpy().tobytes())
        data[place] ^= 1
        last.write_bytes(data)
        assert checkpoints.read(last)["state_dict"]["w"][0] != 2  # torch itself does not see it
    elif harm == "cut short":
        last.write_bytes(data[: len(data) // 2])
    else:
        last.unlink()
    path, wrong = checkpoints.newest(tmp_path)
    assert (path.name, step(path)) == ("previous.ckpt", 1)
    assert len(wrong) == (harm != "absent")
    assert all("last.ckpt is not a whole checkpoint (" in reason for reason in wrong)
    if harm != "absent":
        with pytest.raises(IdcError):
            checkpoints.check(last)


def test_none_at_all(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoints.newest(tmp_path / "checkpoints")
