"""The degradation of super-resolution inputs: parameters of the published training, chance, kernels, JPEG."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from idcompress.core.random import image_generator
from idcompress.images import degrade as module
from idcompress.images.degrade import Degradation, convolve, degrade, gaussian_kernel, jpeg, sharpen, sinc_kernel
from idcompress.images.photo_sets import packaged
from idcompress.images.pictures import crop_square, to_pil, to_tensor


@pytest.fixture(scope="module")
def photos():
    return torch.stack([crop_square(photo.open(), 128) for photo in packaged("search")])


def generators(indices, seed=0):
    return [image_generator(seed, index) for index in indices]


def test_size_range_and_harm(photos):
    low = degrade(photos, generators(range(4)))
    assert low.shape == (4, 3, 32, 32) and low.dtype == torch.float32
    assert low.min() >= 0 and low.max() <= 1
    clean = torch.nn.functional.interpolate(photos, size=(32, 32), mode="area")
    error = (low - clean).square().mean(dim=(1, 2, 3)).sqrt()
    assert (error > 0.005).all() and (error < 0.2).all()  # harmed, and still the same picture


def test_any_batch_split_gives_the_same_bits(photos):
    whole = degrade(photos, generators(range(4)))
    parts = [degrade(photos[[i]], generators([i])) for i in (2, 0, 3, 1)]
    assert torch.equal(whole[[2, 0, 3, 1]], torch.cat(parts))
    assert not torch.equal(whole, degrade(photos, generators(range(4), seed=1)))


@pytest.mark.parametrize("side", [4, 16, 64])
def test_small_images(side):
    images = torch.rand(12, 3, side, side + 4, generator=image_generator(0, 0))
    low = degrade(images, generators(range(12)))
    assert low.shape == (12, 3, side // 4, side // 4 + 1) and low.isfinite().all()


def test_defaults_are_the_published_ones():
    """Stage 1 and 2 of the published training configuration."""
    default = Degradation()
    assert dataclasses.asdict(default) == {
        "scale": 4,
        "final_sinc_prob": 0.8,
        "jpeg_last_prob": 0.5,
        "first": {
            "blur_prob": 1.0,
            "resize_probs": (0.2, 0.7, 0.1),
            "resize_range": (0.3, 1.5),
            "sigma": (0.2, 1.5),
            "noise_sigma": (1.0, 15.0),
            "poisson_scale": (0.05, 2.0),
            "jpeg_quality": (60, 95),
            **(common := shared_defaults()),
        },
        "second": {
            "blur_prob": 0.5,
            "resize_probs": (0.3, 0.4, 0.3),
            "resize_range": (0.6, 1.2),
            "sigma": (0.2, 1.0),
            "noise_sigma": (1.0, 12.0),
            "poisson_scale": (0.05, 1.0),
            "jpeg_quality": (60, 100),
            **common,
        },
    }


def shared_defaults():
    return {
        "sinc_prob": 0.1,
        "kernel_sizes": tuple(range(7, 22, 2)),
        "kernel_probs": (0.45, 0.25, 0.12, 0.03, 0.12, 0.03),
        "beta_generalized": (0.5, 2.0),
        "beta_plateau": (1.0, 1.5),
        "gaussian_noise_prob": 0.5,
        "grey_noise_prob": 0.4,
    }


def test_nothing_but_the_final_size_when_all_is_switched_off(photos):
    quiet = {
        "blur_prob": 0.0,
        "resize_probs": (0.0, 0.0, 1.0),
        "gaussian_noise_prob": 1.0,
        "noise_sigma": (0.0, 0.0),
        "jpeg_quality": (100, 100),
    }
    default = Degradation()
    off = Degradation(
        first=dataclasses.replace(default.first, **quiet),
        second=dataclasses.replace(default.second, **quiet),
        final_sinc_prob=0.0,
    )
    low = degrade(photos, generators(range(4)), off)
    clean = torch.nn.functional.interpolate(photos, size=(32, 32), mode="area")
    # the second round works at the final size; what is left are its choice of filters and JPEG's chroma
    assert (low - clean).abs().mean() < 0.04


def test_kernels():
    for shape in ("gaussian", "generalized", "plateau"):
        kernel = gaussian_kernel(9, (1.5, 0.7), 0.3, shape=shape, beta=1.3)
        assert kernel.sum() == pytest.approx(1, abs=1e-6)
        assert torch.allclose(kernel, kernel.flip(0, 1))  # symmetric about the centre
    isotropic = gaussian_kernel(21, (1.2, 1.2), 1.0)
    assert torch.allclose(isotropic, isotropic.T, atol=1e-7)
    variance = (isotropic.sum(0) * (torch.arange(21) - 10) ** 2).sum()
    assert variance == pytest.approx(1.2**2, rel=1e-3)
    lying = gaussian_kernel(21, (2.0, 0.5))  # long along x
    assert lying[10, 13] > lying[13, 10]
    assert torch.allclose(gaussian_kernel(21, (2.0, 0.5), torch.pi / 2), lying.T, atol=1e-7)


def test_sinc_passes_low_and_stops_high_frequencies():
    kernel = sinc_kernel(21, torch.pi / 2)
    x = torch.arange(96.0)
    for frequency, least, most in ((torch.pi / 6, 0.9, 1.1), (0.9 * torch.pi, 0.0, 0.1)):
        wave = torch.cos(frequency * x).expand(1, 1, 96, 96)
        gain = convolve(wave, kernel)[..., 30:66, 30:66].abs().max()
        assert least <= gain <= most
    assert (kernel < 0).any()  # it rings


def test_convolve_mirrors():
    image = torch.rand(1, 3, 12, 15, generator=image_generator(0, 0))
    kernel = gaussian_kernel(7, (1.0, 2.0), 0.4)
    padded = torch.nn.functional.pad(image, (3, 3, 3, 3), mode="reflect")
    want = torch.nn.functional.conv2d(padded, kernel.expand(3, 1, 7, 7), groups=3)
    assert torch.allclose(convolve(image, kernel), want, atol=1e-6)
    one = torch.full((1, 3, 1, 1), 0.5)
    assert torch.allclose(convolve(one, kernel), one)


def test_jpeg_is_a_real_file(photos):
    got = jpeg(photos[:1], 75)
    file = io.BytesIO()
    to_pil(photos[0]).save(file, format="JPEG", quality=75)  # 4:2:0 is what files have by default
    assert torch.equal(got[0], to_tensor(Image.open(file)))
    errors = [(jpeg(photos[:1], quality) - photos[:1]).square().mean() for quality in (20, 60, 95)]
    assert errors == sorted(errors, reverse=True)


def test_noise_strengths():
    image = torch.full((1, 3, 200, 200), 0.5)
    generator = image_generator(0, 0)
    stage = dataclasses.replace(
        Degradation().first, gaussian_noise_prob=1.0, noise_sigma=(10.0, 10.0), grey_noise_prob=1.0
    )
    noisy = module._noise(image, stage, generator)
    assert noisy.std() == pytest.approx(10 / 255, rel=0.02)
    assert torch.equal(noisy[:, 0], noisy[:, 1])
    stage = dataclasses.replace(stage, grey_noise_prob=0.0)
    assert not torch.equal((noisy := module._noise(image, stage, generator))[:, 0], noisy[:, 1])
    # Poisson: variance mean / photons; a ramp of all 256 values has 256 of them
    ramp = (torch.arange(256.0) / 255).expand(1, 3, 400, 256)
    noise = module._poisson_noise(ramp, False, generator)
    assert noise.mean() == pytest.approx(0, abs=1e-3)
    assert noise[..., 200].var() == pytest.approx(200 / 255 / 256, rel=0.1)


def test_what_does_not_fit(photos):
    with pytest.raises(ValueError, match="one per image"):
        degrade(photos, generators([0]))
    with pytest.raises(ValueError, match="multiples of 4"):
        degrade(photos[..., :126], generators(range(4)))


def test_sharpening_equals_filters_of_scipy_and_leaves_flat_places():
    from scipy import ndimage

    image = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(3))
    image[:, :, :30] = image[:, :, :30] * 0.02 + 0.4  # below the threshold
    row = np.exp(-0.5 * ((np.arange(51) - 25) / 8.0) ** 2)
    row /= row.sum()

    def blur(values):
        for axis in (1, 2):
            values = ndimage.convolve1d(values, row, axis=axis, mode="mirror")
        return values

    whole = image.double().numpy()
    detail = whole - blur(whole)
    share = blur((np.abs(detail) > 10 / 255).astype(float))
    wanted = share * np.clip(whole + 0.5 * detail, 0, 1) + (1 - share) * whole
    assert np.abs(sharpen(image).numpy() - wanted).max() < 1e-5
    flat = torch.full((3, 20, 20), 0.3)
    assert torch.equal(sharpen(flat), flat)
