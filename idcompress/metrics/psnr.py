"""Peak signal-to-noise ratio over all RGB values, in dB.

10 log10(1 / MSE) per image, data range 1, float64; identical images have no number (infinity, see MetricValue.perfect).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ._metric import PairMetric

if TYPE_CHECKING:
    from torch import Tensor


def psnr(image: Tensor, other: Tensor) -> float:
    """PSNR in dB of two tensors of one shape with values in [0, 1]; inf where they are equal, NaN for a NaN."""
    mse = float((image.double() - other.double()).square().mean())
    return math.inf if mse == 0 else -10 * math.log10(mse)


class Metric(PairMetric):
    """PSNR of the output against the reference result, or another image."""

    unit = "dB"
    higher_is_better = True

    def compare(self, output: Tensor, other: Tensor) -> float:
        return psnr(output, other)
