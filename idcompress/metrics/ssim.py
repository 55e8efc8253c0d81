"""Structural similarity over RGB, in [-1, 1].

Gaussian window of 11 px and sigma 1.5, K = (0.01, 0.03), data range 1, population covariance, mean over the channels
and over the windows that lie inside the image: the settings of Wang et al., IEEE TIP 13(4), 2004. (torchmetrics also
averages windows that hang over the border, so its values differ.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ._metric import PairMetric, check_min_size

if TYPE_CHECKING:
    from torch import Tensor

_WINDOW_PX = 11
_SIGMA_PX = 1.5
_C1, _C2 = 0.01**2, 0.03**2


def ssim(image: Tensor, other: Tensor) -> float:
    """SSIM of two images (C, H, W) with values in [0, 1], at least 11 px a side; float64."""
    one, two = image.double(), other.double()
    mean_one, mean_two = _windows(one), _windows(two)
    variance_one = _windows(one * one) - mean_one**2
    variance_two = _windows(two * two) - mean_two**2
    covariance = _windows(one * two) - mean_one * mean_two
    luminance = (2 * mean_one * mean_two + _C1) / (mean_one**2 + mean_two**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_one + variance_two + _C2)
    return float((luminance * structure).mean())


def _windows(values: Tensor) -> Tensor:
    """Gaussian means over every window inside (C, H, W): (C, H - 10, W - 10)."""
    offsets = torch.arange(_WINDOW_PX, dtype=values.dtype, device=values.device) - _WINDOW_PX // 2
    kernel = torch.exp(-0.5 * (offsets / _SIGMA_PX) ** 2)
    kernel = kernel / kernel.sum()
    rows = torch.nn.functional.conv2d(values[:, None], kernel.view(1, 1, 1, -1))
    return torch.nn.functional.conv2d(rows, kernel.view(1, 1, -1, 1))[:, 0]


class Metric(PairMetric):
    """SSIM of the output against the reference result, or another image."""

    unit = ""
    higher_is_better = True

    def compare(self, output: Tensor, other: Tensor) -> float:
        check_min_size(output, _WINDOW_PX, "ssim")
        return ssim(output, other)
