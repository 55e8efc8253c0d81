"""The latency benchmark on the CPU: every cell of it, the ceiling, and cells that time does not reach."""

import json

import pytest
import tiny_random

from idcompress.costs import latency
from scripts import bench_latency

TINY = ("--device", "cpu", "--tiny", "--repeats", "1")


@pytest.fixture
def small(monkeypatch, random_model):
    """Random models in the embedded ones' place."""
    load = bench_latency.load_source

    def random(task, source, **arguments):
        return load(task, {"name": "random", "path": str(random_model(task))}, **arguments)

    monkeypatch.setattr(bench_latency, "load_source", random)


def run(folder, *arguments):
    bench_latency.main([*TINY, "--out", str(folder / "latency"), *arguments])
    return json.loads((folder / "latency.json").read_text()), (folder / "latency.md").read_text()


def test_every_task_gets_ratios_and_narrow_networks_no_milliseconds(small, tmp_path):
    found, text = run(tmp_path, "--batch", "2")
    assert [(row["task"], row["batch"], row["mode"]) for row in found["cells"]] == [
        (task, 2, "eager") for task in ("ip2p", "stablesr", "controlnet")
    ]
    for row in found["cells"]:
        for part in ("networks", "pipeline"):
            assert set(row[part]) == {"ratio", "lower_quartile", "upper_quartile"}
            assert 0 < row[part]["lower_quartile"] <= row[part]["ratio"] <= row[part]["upper_quartile"]
    assert found["ceiling"]["float32"]["tflops"] > 0 and found["ceiling"]["float32"]["copy_gb_per_s"] > 0
    assert text.count("not told") == 6
    assert "not told | 50 to 20 |" not in text and "| 50 to 20 | not told |" in text


def test_wide_networks_get_milliseconds_and_their_share_of_the_ceiling(small, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "FULL_WIDTH", tiny_random.WIDTHS[0])
    found, text = run(tmp_path, "--task", "ip2p")
    networks, pipeline = (found["cells"][0][name] for name in ("networks", "pipeline"))
    assert pipeline["original_ms"] > 0
    assert networks["compressed_ms"] > 0
    assert networks["original_share_of_matrix_rate"] > 0
    assert "%" in text and "not told" not in text


def test_what_time_does_not_reach_is_said(small, tmp_path):
    found, text = run(tmp_path, "--minutes", "0")
    assert found["cells"] == []
    assert len(found["not_reached"]) == 3
    assert "Not reached in 0 minutes: ip2p float32 eager batch 1; stablesr" in text
