"""Training targets and the loss over features against numbers that are worked out by hand.

Noise levels with whole amplitudes make the arithmetic plain: an alphas_cumprod of 0.64 has signal 0.8 and noise 0.6,
one of 0.36 has signal 0.6 and noise 0.8.
"""

import pytest
import torch

from idcompress.core.losses import add_noise, denoising_target, feature_loss
from idcompress.core.process import VariancePreserving, predict, scaled_linear_alphas_cumprod

LEVELS = torch.tensor([0.64, 0.36])
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def pixels(*values):
    """One pixel of one channel for each image."""
    return torch.tensor(values).view(-1, 1, 1, 1)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The forward process and its target.


def test_the_noised_sample_is_that_of_each_images_own_level():
    found = add_noise(
        pixels(1.0, 1.0, -2.0), pixels(10.0, 10.0, 0.0), torch.tensor([0, 1, 0]), VariancePreserving(LEVELS)
    )
    torch.testing.assert_close(found, pixels(0.8 + 6.0, 0.6 + 8.0, -1.6))


@pytest.mark.parametrize(
    ("prediction_type", "wanted"),
    [
        ("epsilon", (10.0, 10.0, 0.0)),
        ("sample", (1.0, 1.0, -2.0)),
        # The velocity is signal * noise - amplitude of the noise * clean, with this sign.
        ("v_prediction", (8.0 - 0.6, 6.0 - 0.8, 0.0 + 1.2)),
    ],
)
def test_the_target_of_each_prediction_type(prediction_type, wanted):
    clean, noise = pixels(1.0, 1.0, -2.0), pixels(10.0, 10.0, 0.0)
    found = denoising_target(clean, noise, torch.tensor([0, 1, 0]), VariancePreserving(LEVELS, prediction_type))
    torch.testing.assert_close(found, pixels(*wanted))


def test_an_unknown_prediction_type_is_named():
    with pytest.raises(ValueError, match="epsilon, v_prediction or sample, got 'flow'"):
        denoising_target(pixels(1.0), pixels(1.0), torch.tensor([0]), VariancePreserving(LEVELS, "flow"))


def test_the_velocity_is_the_derivative_of_the_sample_along_the_circle():
    """With signal cos(phi) and noise sin(phi) the sample moves by its velocity when phi grows."""
    clean, noise, phi, step = draw(1, 4, 3, 3), draw(1, 4, 3, 3, seed=1), 0.7, 1e-5
    around = torch.cos(torch.tensor([phi - step, phi, phi + step], dtype=torch.float64)) ** 2
    process = VariancePreserving(around, "v_prediction")
    before, after = (add_noise(clean, noise, torch.tensor([t]), process) for t in (0, 2))
    target = denoising_target(clean, noise, torch.tensor([1]), process)
    torch.testing.assert_close((after - before) / (2 * step), target, atol=1e-8, rtol=0)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_targets_lead_back_to_the_clean_image_and_its_noise(prediction_type):
    """What training asks of the network is what the samplers read out of it, at every level."""
    process = VariancePreserving(scaled_linear_alphas_cumprod().double(), prediction_type)
    for timestep in (0, 1, 120, 500, 998, 999):
        clean, noise, where = draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1), torch.full((3,), timestep)
        sample = add_noise(clean, noise, where, process)
        target = denoising_target(clean, noise, where, process)
        found = predict(target, sample, process.level(timestep), prediction_type)
        torch.testing.assert_close(found.pred_original_sample, clean, atol=1e-9, rtol=0)
        torch.testing.assert_close(found.pred_epsilon, noise, atol=1e-9, rtol=0)


# The loss over features.


def test_the_feature_loss_is_the_sum_of_the_blocks_mean_squares():
    """Blocks count alike, whatever their size: 2^2 and (1 + 9) / 2."""
    student = {"small": torch.tensor([[3.0]]), "large": torch.tensor([[1.0, 3.0]])}
    teacher = {"large": torch.tensor([[0.0, 0.0]]), "small": torch.tensor([[1.0]])}
    assert feature_loss(student, teacher).item() == 4.0 + 5.0
    assert feature_loss({"large": student["large"]}, {"large": teacher["large"]}).item() == 5.0
    assert feature_loss(student, student).item() == 0.0


def test_features_in_half_precision_are_compared_in_float32():
    """The square of 300 is beyond float16."""
    student, teacher = ({"a": torch.full((1, 4), value, dtype=torch.float16)} for value in (300.0, 0.0))
    found = feature_loss(student, teacher)
    assert found.dtype == torch.float32
    assert found.item() == 90_000


def test_features_of_other_blocks_are_refused():
    with pytest.raises(AssertionError):
        feature_loss({"a": torch.zeros(1)}, {"b": torch.zeros(1)})
