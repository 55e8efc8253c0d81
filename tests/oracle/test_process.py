"""Processes: what a timestep means, what a model output says, which timesteps there are, and what diffusers means."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from idcompress.core.ddim import ddim_step
from idcompress.core.process import (
    CLEAN,
    PREDICTION_TYPES,
    Level,
    RectifiedFlow,
    VariancePreserving,
    check_for_process,
    predict,
    scaled_linear_alphas_cumprod,
)
from idcompress.core.timestep_search import uniform_timesteps
from idcompress.schedulers import process_of

ALPHAS = scaled_linear_alphas_cumprod().double()
PROCESSES = [
    *(VariancePreserving(ALPHAS, kind) for kind in ("epsilon", "v_prediction", "sample")),
    *(RectifiedFlow(1000, kind) for kind in ("flow", "sample")),
]
NAMES = [f"{process.to_json()['name']}-{process.prediction_type}" for process in PROCESSES]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_prediction_type_is_tested():
    assert {process.prediction_type for process in PROCESSES} == set(PREDICTION_TYPES)


# Levels.


@pytest.mark.parametrize("alphas", [ALPHAS, ALPHAS.float()], ids=["float64", "float32"])
def test_levels_that_preserve_the_variance_are_roots(alphas):
    process = VariancePreserving(alphas)
    for timestep, alpha in enumerate(alphas.tolist()):
        assert process.level(timestep) == Level(alpha**0.5, (1 - alpha) ** 0.5)
    signal, noise = process.levels(torch.arange(1000))
    assert torch.equal(signal, alphas.sqrt()) and torch.equal(noise, (1 - alphas).sqrt())
    assert (process.num_train_timesteps, process.max_timestep, process.real_timesteps) == (1000, 999, False)


def test_levels_of_a_flow_are_straight():
    process = RectifiedFlow(1000)
    assert (process.level(0), process.level(250), process.level(1000)) == ((1, 0), (0.75, 0.25), (0, 1))
    assert process.level(0) == CLEAN
    assert process.level(0.5) == (0.9995, 0.0005)
    signal, noise = process.levels(torch.tensor([0.0, 250.0, 999.5]))
    assert torch.equal(signal + noise, torch.ones(3))
    torch.testing.assert_close(noise, torch.tensor([0.0, 0.25, 0.9995]))
    assert (process.num_train_timesteps, process.max_timestep, process.real_timesteps) == (1000, 1000, True)


@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
def test_one_level_and_many_agree(process):
    timesteps = [999, 500, 1]
    signal, noise = process.levels(torch.tensor(timesteps))
    for position, timestep in enumerate(timesteps):
        torch.testing.assert_close(
            torch.tensor(process.level(timestep)), torch.stack([signal[position], noise[position]]).float()
        )


# Predictions.


@pytest.mark.parametrize("timestep", [1, 120, 500, 999])
@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
def test_predictions_lead_back_to_the_image_and_its_noise(process, timestep):
    clean, noise, level = draw(2, 4, 3, 3), draw(2, 4, 3, 3, seed=1), process.level(timestep)
    sample = level.signal * clean + level.noise * noise
    model_output = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": level.signal * noise - level.noise * clean,
        "flow": noise - clean,
    }[process.prediction_type]
    found = predict(model_output, sample, level, process.prediction_type)
    torch.testing.assert_close(found.pred_original_sample, clean, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.pred_epsilon, noise, atol=1e-9, rtol=0)


def test_an_unknown_prediction_type_is_named():
    with pytest.raises(ValueError, match="epsilon, v_prediction, sample, flow, got 'score'"):
        predict(draw(1, 1), draw(1, 1), Level(0.6, 0.8), "score")
    with pytest.raises(ValueError, match="epsilon, v_prediction or sample, got 'flow'"):
        VariancePreserving(ALPHAS, "flow")
    for kind in ("v_prediction", "epsilon"):  # noise says nothing of the image where a flow begins
        with pytest.raises(ValueError, match=f"flow or sample, got '{kind}'"):
            RectifiedFlow(1000, kind)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 2\) and sample \(1, 3\) differ"):
        predict(draw(1, 2), draw(1, 3), Level(0.6, 0.8), "epsilon")


# Timesteps.


@pytest.mark.parametrize("timestep", [0.5, 998.999])
def test_fractions_are_refused_where_timesteps_are_whole(timestep):
    process = VariancePreserving(ALPHAS)
    for refused in (process.level, lambda t: check_for_process([999, t], process)):
        with pytest.raises(ValueError, match=f"whole numbers, got {timestep}"):
            refused(timestep)


def test_a_whole_number_may_come_as_a_float():
    process = VariancePreserving(ALPHAS)
    assert process.level(500.0) == process.level(500)
    assert check_for_process([999.0, 3], process) == [999, 3]


def test_a_flow_takes_real_timesteps():
    assert check_for_process([1000, 999.5, 999.5, 0.25, 0], RectifiedFlow(1000)) == [1000, 999.5, 999.5, 0.25, 0]


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([], "at least one"),
        ([0.5, 0.75], r"0\.5 then 0\.75 at position 1"),
        ([1000.5, 3], r"\[0, 1000\], got 1000\.5 down to 3"),
        ([3, -0.5], r"\[0, 1000\], got 3\.0 down to -0\.5"),
        ([math.nan], "nan"),
        ([5, math.nan, 3], "nan"),
    ],
)
def test_timesteps_that_a_flow_does_not_have_are_named(timesteps, message):
    with pytest.raises(ValueError, match=message):
        check_for_process(timesteps, RectifiedFlow(1000))


def test_uniform_steps_of_a_flow_leave_out_the_clean_end():
    assert uniform_timesteps(4, RectifiedFlow(1000)) == [1000, 750, 500, 250]
    assert uniform_timesteps(3, VariancePreserving(ALPHAS)) == [999, 499, 0]


# As a value, and as diffusers has them.


def test_processes_that_sample_alike_are_equal_as_json():
    for first, one in enumerate(PROCESSES):
        for second, other in enumerate(PROCESSES):
            assert (json.dumps(one.to_json()) == json.dumps(other.to_json())) is (first == second)
    assert VariancePreserving(ALPHAS).to_json() == VariancePreserving(ALPHAS.clone()).to_json()
    assert VariancePreserving(ALPHAS).to_json() != VariancePreserving(ALPHAS[:500]).to_json()
    assert RectifiedFlow(1000).to_json() != RectifiedFlow(500).to_json()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_process_of_a_noise_schedule(prediction_type):
    scheduler = DDIMScheduler(250, beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type)
    process = process_of(scheduler)
    assert isinstance(process, VariancePreserving)
    assert process.prediction_type == prediction_type
    assert torch.equal(process.alphas_cumprod, scheduler.alphas_cumprod)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_process_of_a_flow(shift):
    """A shift moves the list, not what a timestep means: levels are the scheduler's sigmas, and so is the step."""
    scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=shift)
    process = process_of(scheduler)
    assert process.to_json() == RectifiedFlow(1000).to_json()
    scheduler.set_timesteps(5)
    levels = [process.level(float(timestep)) for timestep in scheduler.timesteps]
    assert [level.noise for level in levels] == pytest.approx(scheduler.sigmas[:-1].tolist(), abs=1e-6)
    sample, output = draw(1, 4, 2, 2).float(), draw(1, 4, 2, 2, seed=1).float()
    for timestep, level, following in zip(scheduler.timesteps, levels, [*levels[1:], CLEAN], strict=True):
        theirs = scheduler.step(output, timestep, sample).prev_sample
        ours = ddim_step(predict(output, sample, level, "flow"), level, following)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        sample = theirs


def test_a_scheduler_of_neither_kind_is_named():
    with pytest.raises(ValueError, match="SimpleNamespace has neither a noise schedule nor a flow"):
        process_of(SimpleNamespace(config={}))
