"""What every test may use: the parity facts, random pipelines, and `idc` in this process."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# One thread for torch: two on a busy machine are many times slower. No hub, ever.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What the program remembers of files goes to no user's cache.
os.environ["IDC_CACHE"] = tempfile.mkdtemp(prefix="idc-cache-")

import pytest

atexit.register(shutil.rmtree, os.environ["IDC_CACHE"], ignore_errors=True)
# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.json and print the changes")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of parity fixtures; tests that need it are skipped by name where it is absent."""
    folder = Path(os.environ.get("IDC_SHARED", ROOT / ".." / "shared")).resolve()
    if not folder.is_dir():
        pytest.skip("the parity fixtures are absent: set IDC_SHARED to their folder")
    return folder


@pytest.fixture(scope="session")
def parity_fact() -> Callable[[str], Path]:
    """A file of parity facts, like "depth_skip/timesteps.json": the one in the repository, else one of the others."""

    def find(name: str) -> Path:
        others = Path(os.environ.get("IDC_SHARED", ROOT / ".." / "shared")).resolve() / "fixtures"
        for folder in (ROOT / "tests" / "fixtures" / "parity", others):
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f"the parity facts {name} are absent: set IDC_SHARED to the folder that has fixtures/{name}")

    return find


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """task -> folder of a random pipeline, written once."""
    import tiny_random

    root = tmp_path_factory.mktemp("models")

    def folder(task: str) -> Path:
        path = root / task
        return path if (path / "model_index.json").is_file() else tiny_random.write_pipeline(task, path)

    return folder


@pytest.fixture(scope="session")
def model_of_length(
    random_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Path]:
    """(task, T) -> folder of a random pipeline whose noise schedule has T timesteps, written once."""
    import tiny_random

    root = tmp_path_factory.mktemp("lengths")

    def folder(task: str, length: int) -> Path:
        path = root / f"{task}_{length}"
        return path if path.is_dir() else tiny_random.write_with_length(random_model(task), path, length)

    return folder


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Add an entry to the registry, a module of these members, for one test; returns flags that let `idc` find it."""
    from idcompress import registry

    def add(kind: str, name: str, **members: Any) -> list[str]:
        module = ModuleType(f"idcompress.{registry._FOLDERS[kind]}.{name}")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        names = registry.names
        monkeypatch.setattr(registry, "names", lambda k: sorted([*names(k), name]) if k == kind else names(k))
        yaml = tmp_path / "conf" / kind / f"{name}.yaml"
        yaml.parent.mkdir(parents=True, exist_ok=True)
        yaml.write_text(f"name: {name}\n")
        return ["--config-dir", str(tmp_path / "conf")]

    return add


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command line did: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def idc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Result]]:
    """Run a command line in an empty folder and catch what a user would see."""
    from idcompress import cli, console

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

    yield run
    for handler in [*console.log.handlers]:  # the folder of the last run's log.txt is gone when another test warns
        if isinstance(handler, logging.FileHandler):
            console.log.removeHandler(handler)
            handler.close()
