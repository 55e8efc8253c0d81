"""`idc` in this process, in an empty working directory, on random networks."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tiny_random

from idcompress import cli


@dataclasses.dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """task -> folder of a random pipeline, written once."""
    root = tmp_path_factory.mktemp("models")

    def folder(task: str) -> Path:
        path = root / task
        return path if (path / "model_index.json").is_file() else tiny_random.write_pipeline(task, path)

    return folder


@pytest.fixture
def idc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command line in an empty folder and catch what a user would see."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments: str) -> Result:
        capfd.readouterr()
        code = 0
        try:
            cli.main(list(arguments))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return run
