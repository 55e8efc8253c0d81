"""Restored photographs that lack detail: blurred, with a little noise, and deblurred by a Wiener filter.

Both filters act on the picture continued by its mirror images, so that borders do not ring.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIGMA_SHARE = (0.01, 0.024)  # of the blur, of the shorter side
NOISE = 0.01  # standard deviation of the blurred picture's noise, of the range
NOISE_TO_SIGNAL = 0.01  # that the filter assumes: more than there is, as a careful restoration does


def restored(image: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Blur and deblur photographs.

    Args:
        image: (B, 3, H, W), float32 in [0, 1].
        sigma: (B,), standard deviation of the Gaussian blur in pixels.
        noise: (B, 3, H, W), unit normal.

    Returns:
        (B, 3, H, W) in [0, 1].

    Source: Gonzalez and Woods, Digital Image Processing, Sec. 5.8 (parametric Wiener filter).
    """
    height, width = image.shape[-2:]
    rows = torch.fft.fftfreq(2 * height, device=image.device).square()[:, None]
    columns = torch.fft.rfftfreq(2 * width, device=image.device).square()
    gain = torch.exp(-2 * math.pi**2 * sigma.square().view(-1, 1, 1, 1) * (rows + columns))
    blurred = _filtered(image, gain) + NOISE * noise
    return _filtered(blurred, gain / (gain.square() + NOISE_TO_SIGNAL)).clamp(0, 1)


def draw_restored(image: Tensor, generator: torch.Generator) -> Tensor:
    """One photograph (3, H, W) in [0, 1], restored after a blur and noise from its generator."""
    low, high = (share * min(image.shape[-2:]) for share in SIGMA_SHARE)
    sigma = low + (high - low) * torch.rand(1, generator=generator)
    noise = torch.randn((1, *image.shape), generator=generator)
    return restored(image[None], sigma, noise)[0]


def _filtered(image: Tensor, gain: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    mirrored = torch.cat([image, image.flip(-2)], -2)
    mirrored = torch.cat([mirrored, mirrored.flip(-1)], -1)
    whole: Tensor = torch.fft.irfft2(torch.fft.rfft2(mirrored) * gain, s=mirrored.shape[-2:])
    return whole[..., :height, :width]
