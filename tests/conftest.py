"""Where the facts are, and one thread for torch: two on a busy machine are many times slower."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of parity fixtures; tests that need it are skipped by name where it is absent."""
    folder = Path(os.environ.get("IDC_SHARED", ROOT / ".." / "shared")).resolve()
    if not folder.is_dir():
        pytest.skip("the parity fixtures are absent: set IDC_SHARED to their folder")
    return folder
