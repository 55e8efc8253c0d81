"""What a machine, a shell or another user may do to a command: each ends in one line."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from idcompress import cli
from idcompress.runs import timing

SMOKE = ("experiment=smoke", "recipe=none", "timesteps=uniform")


def one_line(result, code=2):
    assert result.code == code, result
    assert result.err.startswith("idc: error: ") and result.err.count("\n") == 1, result.err
    return result.err


def test_a_picture_that_is_a_program_is_not_run(idc, random_model, tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file's name ends in."""
    programs, ran = tmp_path / "bin", tmp_path / "ran"
    programs.mkdir()
    for name in ("gs", "gswin32c", "gswin64c"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {ran}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    picture = Path("picture.jpg")
    picture.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n")
    command = ("translate", f"model.path={random_model('ip2p')}", "recipe=none", "prompt=make it red")
    assert "picture.jpg" in one_line(idc(*command, "image=picture.jpg"))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_a_command_in_one_line(idc, monkeypatch, number, code, word):
    ours = signal.getsignal(number)
    if number == signal.SIGINT:  # a shell lets what it starts in the background ignore it
        signal.signal(number, signal.default_int_handler)
    before = signal.getsignal(number)
    monkeypatch.setattr(cli, "run_command", lambda *_: os.kill(os.getpid(), number))
    assert f"{word}; the same command continues" in one_line(idc("tsopt"), code)
    assert signal.getsignal(number) == before
    signal.signal(number, ours)


@pytest.mark.parametrize("words", [["-sc"], ["--shell-completion"], ["tsopt", "-sc"], ["-sc", "install=tcsh"]])
def test_completion_without_a_shell(idc, words):
    assert "bash, zsh or fish" in one_line(idc(*words))


def test_a_deleted_working_folder(idc, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in (["tsopt"], ["ls"], ["cache"], ["--version"]):
        assert "the working folder was deleted" in one_line(idc(*words))
    assert idc("--help").code == 0
    monkeypatch.chdir(tmp_path)


def test_only_one_of_sweeping_and_showing(idc):
    assert "Only one of" in one_line(idc("tsopt", "-m", "seed=0,1", "--cfg", "job"))


def test_a_run_folder_that_vanishes(idc, random_model, monkeypatch):
    """The run ends in one line and marks nothing as finished; the same command begins it again."""
    command = ("tsopt", *SMOKE, f"model.path={random_model('ip2p')}", "hydra.run.dir=run")
    save = timing.save

    def vanish(seconds, folder):
        shutil.rmtree(folder)
        return save(seconds, folder)

    monkeypatch.setattr(timing, "save", vanish)
    assert "run was taken away while the run was using it" in one_line(idc(*command))
    monkeypatch.setattr(timing, "save", save)
    done = idc(*command)
    assert done.code == 0, done.err
    assert Path("run/recipe.json").is_file() and Path("run/metrics.json").is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_working_folder(idc, random_model):
    Path.cwd().chmod(0o555)
    try:
        assert "set hydra.run.dir" in one_line(idc("tsopt", *SMOKE, f"model.path={random_model('ip2p')}"))
    finally:
        Path.cwd().chmod(0o755)
