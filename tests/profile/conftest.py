"""Runs of `idc profile`."""

import json
from pathlib import Path

import pytest

LEVEL_KEYS = {
    "level",
    "params",
    "params_pct",
    "cumulative_params",
    "cumulative_pct",
    "file_params",
    "gmacs",
    "gmacs_pct",
    "cumulative_gmacs_pct",
    "gmacs_with_attention",
}


@pytest.fixture
def profiled(idc):
    """Profile, once in a test: what profile.json holds, and what a user sees."""

    def run(*arguments):
        result = idc("profile", *arguments)
        assert result.code == 0, result.err
        (folder,) = Path().glob("outputs/*/*/profile/*")
        assert (folder / "levels.png").read_bytes().startswith(b"\x89PNG")
        found = json.loads((folder / "profile.json").read_text())
        assert set(found) == {"version", "task", "model", "params", "levels", "totals"}
        assert all(set(row) == LEVEL_KEYS for row in found["levels"])
        return found, result.out

    return run
