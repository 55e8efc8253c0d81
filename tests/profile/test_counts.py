"""Counts of `idc profile`: the paper's tables of size and computation, and the cut networks' own."""

import pytest
import tiny_random

from idcompress.adapters.unet import depth_skip, full_depth
from idcompress.costs import macs
from idcompress.costs.levels import level_costs, level_modules

# Tab. S7, columns of parameters, in percent
OWN = (0.69, 1.25, 1.37, 2.85, 4.39, 5.06, 10.98, 16.71, 17.47, 9.17, 9.37, 9.37, 11.32)
SUM = (0.70, 1.95, 3.32, 6.17, 10.56, 15.62, 26.60, 43.31, 60.78, 69.95, 79.32, 88.68, 100.00)


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


def test_instruct_pix2pix_has_the_papers_profile(profiled):
    found, out = profiled("task=ip2p", "model=official", "depth=9", "profile.latency=false")
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


def test_stablesr_counts_spade_and_the_structure_encoder(profiled):
    found, _ = profiled("task=stablesr", "model=official", "depth=8", "profile.latency=false")
    assert [round(v, 2) for v in column(found, "cumulative_pct")[7:12]] == [43.58, 60.77, 69.70, 79.17, 88.64]
    totals = found["totals"]
    assert (totals["file_params"], totals["params"]) == (918_930_884, 916_880_324)
    assert counts(totals, "original")[1] == 969_374_404  # Tab. 2: 969M
    assert counts(totals, "unet_cut_only")[1] == 452_036_164  # 452M
    assert counts(totals, "compressed")[1] == 399_542_084 + 25_931_520
    assert saved_gmacs_pct(totals) < 17.0
    assert 100 - column(found, "cumulative_gmacs_pct")[7] == pytest.approx(17.0, abs=0.05)  # Tab. S8, the U-Net's
    assert totals["guidance_branches"] == 1


def test_controlnet_counts_its_branch(profiled):
    found, _ = profiled("task=controlnet", "model=official", "depth=9", "profile.latency=false")
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
    for row in rows[::4]:
        cut = depth_skip(unet, row["level"])
        size = sum(p.numel() for p in cut.parameters())
        assert (row["file_params"], row["cumulative_params"]) == (size, size - embedding)
        if row["level"] == 5:
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
