"""Peak signal-to-noise ratio of the luma channel, in dB, as super-resolution papers report it.

Y of ITU-R BT.601 in studio range: (65.481 R + 128.553 G + 24.966 B + 16) / 255 for RGB in [0, 1], data range 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import psnr

if TYPE_CHECKING:
    from torch import Tensor


def studio_luma(image: Tensor) -> Tensor:
    """Y in [16/255, 235/255] of RGB in [0, 1]: (..., 3, H, W) to (..., 1, H, W), float64."""
    weights = torch.tensor((65.481, 128.553, 24.966), dtype=torch.float64, device=image.device).view(3, 1, 1)
    return ((image.double() * weights).sum(-3, keepdim=True) + 16) / 255


class Metric(psnr.Metric):
    """PSNR of the outputs' luma."""

    subject = "luma of the output"

    def compare(self, output: Tensor, other: Tensor) -> float:
        return psnr.psnr(studio_luma(output), studio_luma(other))
