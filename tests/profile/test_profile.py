"""`idc profile`: the paper's tables of size and cost, the cut networks' own counts, and times as ratios."""

import json
from pathlib import Path

import pytest
import tiny_random
import torch

from idcompress.adapters.unet import depth_skip, full_depth
from idcompress.metrics import macs, memory
from idcompress.metrics._levels import level_costs, level_modules, level_times
from idcompress.stages import profile

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
# Tab. S7, columns of parameters, in percent
OWN = (0.69, 1.25, 1.37, 2.85, 4.39, 5.06, 10.98, 16.71, 17.47, 9.17, 9.37, 9.37, 11.32)
SUM = (0.70, 1.95, 3.32, 6.17, 10.56, 15.62, 26.60, 43.31, 60.78, 69.95, 79.32, 88.68, 100.00)


def run(idc, *arguments):
    result = idc("profile", *arguments)
    assert result.code == 0, result.err
    (folder,) = Path().glob("outputs/*/*/profile/*")
    assert (folder / "levels.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((folder / "profile.json").read_text())
    assert set(found) == {"version", "task", "model", "levels", "totals"}
    assert all(set(row) == LEVEL_KEYS for row in found["levels"])
    return found, result.out


def column(found, name):
    return [row[name] for row in found["levels"]]


def counts(totals, system, name="networks"):
    row = totals[name][system]
    return row["file_params"], row["params"]


def saved_gmacs_pct(totals):
    """By cutting the U-Net alone, as the paper does."""
    full, cut = (totals["networks"][system]["gmacs"] for system in ("original", "unet_cut_only"))
    return 100 * (1 - cut / full)


# the published models, on the meta device


def test_instruct_pix2pix_has_the_papers_profile(idc):
    found, out = run(idc, "task=ip2p", "model=official", "depth=9", "profile.latency=false")
    assert [round(value, 2) for value in column(found, "params_pct")] == list(OWN)
    assert [round(value, 2) for value in column(found, "cumulative_pct")] == list(SUM)
    assert column(found, "level") == list(range(1, 14))
    assert column(found, "file_params")[8] == 523_229_124
    totals = found["totals"]
    assert (totals["file_params"], totals["params"]) == (859_532_484, 857_481_924)
    assert totals["gmacs"] == pytest.approx(338.6, abs=0.2)
    assert totals["gmacs_with_attention"] == pytest.approx(401.68, abs=0.005)
    assert counts(totals, "compressed") == (523_229_124, 521_178_564)
    assert counts(totals, "original", "pipeline")[0] == 1_066_246_827  # Tab. 2: 1066M
    assert saved_gmacs_pct(totals) == pytest.approx(7.0, abs=0.05)  # Tab. S8
    for text in ("D09", "60.78", "523,229,124", "338.66", "401.68", "paper's rule", "in the file"):
        assert text in out
    assert "latency" not in totals


def test_stablesr_counts_spade_and_the_structure_encoder(idc):
    found, _ = run(idc, "task=stablesr", "model=official", "depth=8", "profile.latency=false")
    assert [round(v, 2) for v in column(found, "cumulative_pct")[7:12]] == [43.58, 60.77, 69.70, 79.17, 88.64]
    totals = found["totals"]
    assert (totals["file_params"], totals["params"]) == (918_930_884, 916_880_324)
    assert counts(totals, "original")[1] == 969_374_404  # Tab. 2: 969M
    assert counts(totals, "unet_cut_only")[1] == 452_036_164  # 452M
    assert counts(totals, "compressed")[1] == 399_542_084 + 25_931_520
    assert saved_gmacs_pct(totals) < 17.0
    assert 100 - column(found, "cumulative_gmacs_pct")[7] == pytest.approx(17.0, abs=0.05)  # Tab. S8, the U-Net's
    assert totals["guidance_branches"] == 1


def test_controlnet_counts_its_branch(idc):
    found, _ = run(idc, "task=controlnet", "model=official", "depth=9", "profile.latency=false")
    totals = found["totals"]
    assert (totals["gmacs"], totals["gmacs_with_attention"]) == pytest.approx((338.61, 401.64), abs=0.005)
    assert counts(totals, "original")[0] == 1_220_800_084
    assert counts(totals, "unet_cut_only")[0] == 884_496_724
    assert counts(totals, "compressed")[0] == 703_875_924
    assert counts(totals, "original", "pipeline")[0] == 1_427_514_427  # Tab. 2: 1427M
    assert saved_gmacs_pct(totals) == pytest.approx(5.2, abs=0.05)  # Tab. S8
    components = totals["components"]["original"]
    assert components["vae_encoder"]["called"] == "never"
    last = totals["by_steps"][-1]
    assert (last["num_inference_steps"], last["network_calls"]) == (5, 10)
    once = components["vae_decoder"]["gmacs"] + components["text_encoder"]["gmacs"]
    assert last["original"]["gmacs"] - last["original"]["networks_gmacs"] == pytest.approx(once)


# any U-Net: the rows are those of the networks that a cut leaves


@pytest.mark.parametrize("kind", ["plain", "stablesr"])
def test_rows_are_the_cut_networks_own_counts(kind):
    unet = tiny_random.unet() if kind == "plain" else tiny_random.stablesr_pipeline().unet
    rows = level_costs(unet, 8, encoder_tokens=12)
    assert len(rows) == full_depth(unet)
    embedding = sum(p.numel() for p in unet.time_embedding.parameters())
    total = macs.unet_macs(unet, encoder_tokens=12)
    for row in rows:
        cut = depth_skip(unet, row["level"])
        size = sum(p.numel() for p in cut.parameters())
        assert (row["file_params"], row["cumulative_params"]) == (size, size - embedding)
        if row["level"] in (2, 7):
            share = macs.unet_macs(cut, encoder_tokens=12)[0] / total[0]
            assert row["cumulative_gmacs_pct"] == pytest.approx(100 * share)
    assert rows[-1]["cumulative_gmacs_pct"] == pytest.approx(100)
    assert sum(row["gmacs_with_attention"] for row in rows) <= total[1]
    head = sum(p.numel() for name in ("conv_norm_out", "conv_out") for p in unet.get_submodule(name).parameters())
    assert rows[0]["cumulative_params"] - rows[0]["params"] == head


def test_a_cut_network_has_the_levels_that_it_kept():
    unet = tiny_random.unet()
    full = level_costs(unet, 8, encoder_tokens=12)
    for depth in (4, 8):
        kept = level_costs(depth_skip(unet, depth), 8, encoder_tokens=12)
        for name in ("params", "cumulative_params", "file_params", "gmacs", "gmacs_with_attention"):
            assert [row[name] for row in kept] == pytest.approx([row[name] for row in full[:depth]])
        assert kept[-1]["cumulative_pct"] == kept[-1]["cumulative_gmacs_pct"] == pytest.approx(100)


@pytest.mark.parametrize("depth", [13, 8])
def test_every_weight_lies_in_one_level_or_outside(depth):
    unet = depth_skip(tiny_random.unet(), depth)
    names = [name for level in level_modules(unet) for name in level]
    assert len(names) == len(set(names))
    for parameter, _ in unet.named_parameters():
        owners = [name for name in names if parameter.startswith(f"{name}.")]
        assert len(owners) == (0 if parameter.startswith(("time_embedding.", "conv_norm_out.", "conv_out.")) else 1)


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


# times


def keys(value):
    if isinstance(value, dict):
        return set(value) | {key for item in value.values() for key in keys(item)}
    return {key for item in value for key in keys(item)} if isinstance(value, list) else set()


def test_embedded_models_get_ratios_and_no_milliseconds(idc):
    found, out = run(idc, "task=controlnet", "depth=4", "profile.repeats=1", "num_inference_steps=30")
    latency = found["totals"]["latency"]
    assert not any(key.endswith("_ms") for key in keys(found))
    assert " s)" not in out
    assert sum(row["latency_pct"] for row in latency["levels"]) == pytest.approx(100)
    assert latency["levels"][-1]["cumulative_latency_pct"] == pytest.approx(100)
    assert latency["network_call"]["ratio"] > 0
    rows = {row["num_inference_steps"]: row for row in latency["by_steps"]}
    assert sorted(rows) == [5, 10, 15, 20, 30, 50]
    assert rows[30]["original"] == {"networks_ratio": 1, "total_ratio": 1}
    assert rows[5]["original"]["networks_ratio"] == pytest.approx(1 / 6)
    assert rows[5]["original"]["total_ratio"] > 1 / 6  # what is called once stays
    assert {"vae_decoder", "text_encoder"} <= set(latency["components"])
    assert "vae_encoder" not in latency["components"]


def test_a_model_of_ones_own_gets_milliseconds(idc, random_model):
    path = random_model("stablesr")
    found, _ = run(idc, "task=stablesr", f"model.path={path}", "depth=9", "profile.repeats=1", "profile.batch_size=2")
    latency = found["totals"]["latency"]
    assert latency["batch_size"] == 2
    assert latency["components"]["vae_decoder"]["median_ms"] > 0
    assert latency["by_steps"][0]["compressed"]["total_ms"] > latency["by_steps"][0]["compressed"]["networks_ms"] > 0
    assert latency["peak_memory"]["original"]["peak_rss_mb"] > 50


def test_the_published_model_is_timed_with_random_weights(idc, monkeypatch):
    asked = []

    def small(task, device="meta"):
        asked.append(device)
        pipeline = tiny_random.stablesr_pipeline()
        return {name: getattr(pipeline, name).to(device) for name in ("unet", "structure_encoder", "vae")}

    monkeypatch.setattr(profile, "meta_components", small)
    monkeypatch.setattr(profile, "random_components", small)
    # the stored text width is not the small model's; nothing else depends on it
    found, _ = run(
        idc, "task=stablesr", "model=official", "profile.repeats=1", "device=cpu", "profile.resolution_px=64"
    )
    assert asked == ["meta", "cpu"]
    assert found["totals"]["depth"] is None
    assert "compressed" not in found["totals"]["components"]
    assert found["totals"]["latency"]["levels"][0]["latency_ms"] > 0


def test_mistakes_are_one_line(idc, random_model):
    result = idc("profile", "task=ip2p", "profile.resolution_px=50")
    assert result.code == 2
    assert "profile.resolution_px must be a multiple of 32" in result.err
    result = idc("profile", "task=ip2p", "profile.repeats=0")
    assert "profile.repeats must be at least 1" in result.err
    result = idc("profile", "task=ip2p", "depth=14", "profile.latency=false")
    assert "change depth=" in result.err


def test_peak_memory_is_that_of_the_call():
    mb = 256

    def hungry():
        torch.ones(mb * 250_000).sum()

    (name, rest), (_, peak) = (memory.measure_peak_memory(f, "cpu") for f in (lambda: None, hungry))
    assert name == "peak_rss_mb"
    assert peak > rest + 0.8 * mb
    after = memory.measure_peak_memory(lambda: None, "cpu")[1]
    assert after < peak - 0.5 * mb or not Path("/proc/self/clear_refs").exists()
