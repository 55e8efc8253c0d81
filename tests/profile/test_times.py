"""Times of `idc profile`: shares and ratios, milliseconds of full-width models only, and memory."""

from pathlib import Path

import pytest
import tiny_random
import torch

from idcompress.costs import latency, memory
from idcompress.costs.levels import level_modules, level_times
from idcompress.models import official


def test_level_times_leave_no_hooks_and_wait_for_the_device():
    unet, waits = tiny_random.unet(), []
    inputs = {
        "sample": torch.zeros(1, 8, 8, 8),
        "timestep": torch.tensor(1),
        "encoder_hidden_states": torch.zeros(1, 12, 16),
    }
    times = level_times(unet, inputs, warmup=1, repeats=2, synchronise=lambda: waits.append(1))
    assert [len(level) for level in times] == [2] * 13
    assert all(time > 0 for level in times for time in level)
    modules = sum(len(level) for level in level_modules(unet))
    assert len(waits) == 3 * 2 * modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def keys(value):
    if isinstance(value, dict):
        return set(value) | {key for item in value.values() for key in keys(item)}
    return {key for item in value for key in keys(item)} if isinstance(value, list) else set()


def test_embedded_models_get_ratios_and_no_milliseconds(profiled):
    found, out = profiled("task=controlnet", "depth=4", "profile.repeats=1", "num_inference_steps=30")
    times = found["totals"]["latency"]
    assert not any(key.endswith("_ms") for key in keys(found))
    assert " s\n" not in out
    assert sum(row["latency_pct"] for row in times["levels"]) == pytest.approx(100)
    assert times["levels"][-1]["cumulative_latency_pct"] == pytest.approx(100)
    assert times["network_call"]["ratio"] > 0
    rows = {row["num_inference_steps"]: row for row in times["by_steps"]}
    assert sorted(rows) == [5, 10, 15, 20, 30, 50]
    assert rows[30]["original"] == {"networks_ratio": 1, "total_ratio": 1}
    assert rows[5]["original"]["networks_ratio"] == pytest.approx(1 / 6)
    assert rows[5]["original"]["total_ratio"] > 1 / 6  # what is called once stays
    assert {"vae_decoder", "text_encoder"} <= set(times["components"])
    assert "vae_encoder" not in times["components"]


def test_guidance_multiplies_the_networks_samples_and_not_the_autoencoders(random_model):
    from idcompress.costs.components import components_of
    from idcompress.sources.load import load_source

    pipeline = load_source("stablesr", {"name": "random", "path": str(random_model("stablesr"))}).pipeline
    found = components_of(pipeline, [pipeline.unet], 64, encoder_tokens=5, batch_size=2, branches=3)
    sizes = {part.name: next(iter(part.inputs.values())).shape[0] for part in found}
    assert sizes == {"unet": 6, "vae_encoder": 2, "vae_decoder": 2}


def test_a_wide_model_of_ones_own_gets_milliseconds(profiled, random_model, monkeypatch):
    path = random_model("stablesr")
    monkeypatch.setattr(latency, "FULL_WIDTH", 16)
    found, _ = profiled("task=stablesr", f"model.path={path}", "depth=9", "profile.repeats=1", "profile.batch_size=2")
    times = found["totals"]["latency"]
    assert times["batch_size"] == 2
    assert times["components"]["vae_decoder"]["median_ms"] > 0
    assert times["by_steps"][0]["compressed"]["total_ms"] > times["by_steps"][0]["compressed"]["networks_ms"] > 0
    assert times["peak_memory"]["original"]["peak_rss_mb"] > 50


def test_the_published_model_is_timed_with_random_weights(profiled, monkeypatch):
    asked = []

    def small(task, device="meta"):
        asked.append(device)
        pipeline = tiny_random.stablesr_pipeline()
        return {name: getattr(pipeline, name).to(device) for name in ("unet", "structure_encoder", "vae")}

    monkeypatch.setattr(official, "meta_components", small)
    monkeypatch.setattr(official, "random_components", small)
    found, _ = profiled(
        "task=stablesr", "model=official", "profile.repeats=1", "device=cpu", "profile.resolution_px=64"
    )
    assert asked == ["meta", "cpu"]
    assert found["totals"]["depth"] is None
    assert "compressed" not in found["totals"]["components"]
    assert found["totals"]["latency"]["levels"][0]["latency_pct"] > 0


def test_mistakes_are_one_line(idc):
    result = idc("profile", "task=ip2p", "profile.resolution_px=50")
    assert result.code == 2
    assert "profile.resolution_px must be a multiple of 32" in result.err
    result = idc("profile", "task=ip2p", "profile.repeats=0")
    assert "profile.repeats must be at least 1" in result.err


def test_peak_memory_is_that_of_the_call():
    mb = 256

    def hungry():
        torch.ones(mb * 250_000).sum()

    (name, rest), (_, peak) = (memory.measure_peak_memory(f, "cpu") for f in (lambda: None, hungry))
    assert name == "peak_rss_mb"
    assert peak > rest + 0.8 * mb
    after = memory.measure_peak_memory(lambda: None, "cpu")[1]
    assert after < peak - 0.5 * mb or not Path("/proc/self/clear_refs").exists()
