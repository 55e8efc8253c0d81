"""Which validation of a fine-tuning counts as the best, where some have no number."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from idcompress.runs.trace import Trace
from idcompress.stages._preview import Preview

ROWS = (
    {"step": 0, "metrics": {"psnr": None}, "notes": {"psnr": "nothing to compare with"}},
    {"step": 10, "metrics": {"psnr": 20.0}},
    {"step": 20, "metrics": {"psnr": None}, "perfect": ["psnr"]},
    {"step": 30, "metrics": {"psnr": 30.0}},
)


class RunDir(type(Path())):
    def trace(self):
        return Trace(self / "trace.jsonl")


@pytest.fixture
def preview(tmp_path):
    bench = SimpleNamespace(metric=lambda name: SimpleNamespace(higher_is_better=True))
    settings = {"trained": ["unet"], "metrics": ["psnr"], "keep_best": True, "keep_full": False}
    made = Preview(bench, None, None, RunDir(tmp_path), **settings)
    for row in ROWS:
        made.trace.append(row)
    return made


def test_what_is_on_record_is_read_back(preview):
    assert [preview(row["step"]) for row in ROWS] == [{}, {"psnr": 20.0}, {"psnr": math.inf}, {"psnr": 30.0}]


def test_only_images_that_equal_their_references_are_perfect(preview):
    assert preview.best_step() == 20
    preview.trace.rows[2].pop("perfect")
    assert preview.best_step() == 30
