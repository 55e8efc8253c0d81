"""Costs of networks: published figures from the meta device, pruned networks, and times that can be trusted."""

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from idcompress import console, depth_skip
from idcompress.adapters.unet import full_depth
from idcompress.costs import latency, macs, parameters
from idcompress.costs.network import network_inputs, on_meta
from idcompress.errors import IdcError

SMALL = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


@pytest.fixture(scope="module")
def sd15():
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return UNet2DConditionModel(**SMALL).eval()


def test_stable_diffusion_has_the_published_macs(sd15):
    gmacs, with_attention = macs.unet_macs(sd15)
    assert gmacs == pytest.approx(338.61, abs=0.005)
    assert with_attention == pytest.approx(401.64, abs=0.005)
    assert macs.unet_macs(sd15, 32)[1] == pytest.approx(90.05, abs=0.02)
    measured = macs.Macs(sample_size=64).measure([sd15])
    assert measured == {"gmacs": gmacs, "gmacs_with_attention": with_attention}


def test_the_control_branch_has_the_published_macs():
    with torch.device("meta"):
        branch = ControlNetModel(cross_attention_dim=768)
    assert macs.unet_macs(branch, 64)[1] == pytest.approx(141.6, abs=0.1)
    assert parameters.count_parameters(branch)[0] == 361_279_120


def test_parameters_by_both_rules_at_two_depths(sd15):
    assert parameters.count_parameters(sd15) == (859_520_964, 859_520_964 - 2_050_560)
    pruned = depth_skip(sd15, 9)
    assert parameters.count_parameters(pruned)[0] == 523_217_604
    both = parameters.Parameters().measure([sd15, pruned])
    assert both["params"] == 859_520_964 + 523_217_604


def test_macs_fall_with_depth_and_leave_the_network_alone(small):
    before = {name: value.clone() for name, value in small.state_dict().items()}
    values = [macs.unet_macs(depth_skip(small, d)) for d in range(1, full_depth(small) + 1)]
    assert values == sorted(values)
    assert values[-1] == macs.unet_macs(small)
    assert all(plain <= both for plain, both in values)
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())
    assert next(small.parameters()).device.type == "cpu"
    assert all(p.device.type == "meta" for p in on_meta(small).parameters())


def test_macs_of_a_linear_layer_and_of_attention_by_hand():
    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(6, 10)

        def forward(self, x):
            y = self.linear(x)
            return torch.nn.functional.scaled_dot_product_attention(y, y, y)

    plain, both = macs.count_gmacs(Tiny(), {"x": torch.zeros(1, 2, 5, 6)})
    assert plain * 1e9 == pytest.approx(2 * 5 * 6 * 10)
    assert (both - plain) * 1e9 == pytest.approx(2 * (2 * 5 * 5 * 10))


def test_inputs_fit_every_kind_of_network(small):
    assert small(**network_inputs(small, batch_size=2)).sample.shape == (2, 4, 8, 8)
    branch = ControlNetModel.from_unet(small, conditioning_embedding_out_channels=(8, 16, 16))
    inputs = network_inputs(branch, sample_size=8)
    assert inputs["controlnet_cond"].shape == (1, 3, 32, 32)
    assert len(branch(**inputs, return_dict=False)[0]) == 4
    half = small.to(torch.float16)
    assert network_inputs(half)["sample"].dtype == torch.float16
    small.to(torch.float32)


def test_stablesr_networks_are_counted():
    from idcompress.models.stablesr.unet import StableSRUNet2DConditionModel

    with torch.device("meta"):
        unet = StableSRUNet2DConditionModel(structure_channels=8, spade_hidden_channels=8, **SMALL)
        plain = UNet2DConditionModel(**SMALL)
    assert macs.unet_macs(unet)[0] > macs.unet_macs(plain)[0]


def test_latency_is_the_median_after_warm_up(monkeypatch):
    ticks = iter([0.0, 1.0, 10.0, 12.0, 20.0, 26.0])
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(ticks))
    calls, waits = [], []
    result = latency.measure_latency(
        lambda: calls.append(1), warmup=2, repeats=3, synchronise=lambda: waits.append(len(calls))
    )
    assert len(calls) == 5
    assert waits == [2, 3, 3, 4, 4, 5]
    assert result.all_ms == (1000.0, 2000.0, 6000.0)
    assert (result.lower_quartile_ms, result.median_ms, result.upper_quartile_ms) == (1500.0, 2000.0, 4000.0)


def test_slow_calls_are_fewer_and_a_run_without_a_terminal_says_how_far_it_is(monkeypatch):
    now, seen = [0.0], []
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(latency.time, "monotonic", lambda: now[0])

    def call():
        seen.append(console._whereabouts())
        now[0] += 20

    found = latency.measure_latency(call, warmup=3, repeats=10, limit_s=30, what="the networks")
    assert found.all_ms == (20_000,) * 3  # at least three, after one that is not measured
    assert seen == [f"timing the networks: {done} of 13" for done in range(4)]
    both = latency.measure_ratio(call, call, warmup=3, repeats=10, limit_s=199)
    assert len(both.base.all_ms) == len(both.other.all_ms) == 5  # of 40 s each
    assert len(latency.measure_latency(call, warmup=0, repeats=10).all_ms) == 10


def test_a_ratio_interleaves_its_two_callables(monkeypatch):
    now = [0.0]
    order = []

    def taking(seconds, name):
        def call():
            now[0] += seconds
            order.append(name)

        return call

    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    result = latency.measure_ratio(taking(4, "base"), taking(1, "other"), warmup=1, repeats=3)
    assert order == ["base", "other", "base", "other", "other", "base", "base", "other"]
    assert result.median == result.lower_quartile == result.upper_quartile == 0.25
    assert result.base.median_ms == 4000
    assert result.other.median_ms == 1000


def test_latency_of_a_network_is_a_time(small):
    measured = latency.NetworkLatency(warmup=1, repeats=3).measure([small])
    assert 0 < measured["latency_lower_quartile_ms"] <= measured["latency_ms"] <= measured["latency_upper_quartile_ms"]
    with pytest.raises(IdcError, match="repeats=0"):
        latency.NetworkLatency(repeats=0)
    with pytest.raises(IdcError, match="warmup=-1"):
        latency.measure_ratio(lambda: None, lambda: None, warmup=-1)
