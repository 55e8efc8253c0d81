"""Structural similarity of the luma channel, as super-resolution papers report it.

The settings of `ssim` on the Y of `psnr_y`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import ssim
from ._metric import check_min_size
from .psnr_y import studio_luma

if TYPE_CHECKING:
    from torch import Tensor


class Metric(ssim.Metric):
    """SSIM of the outputs' luma."""

    subject = "luma of the output"

    def compare(self, output: Tensor, other: Tensor) -> float:
        check_min_size(output, 11, "ssim_y")
        return ssim.ssim(studio_luma(output), studio_luma(other))
