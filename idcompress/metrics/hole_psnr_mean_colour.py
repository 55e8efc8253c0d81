"""PSNR inside the hole of its surroundings' mean colour, in dB: what a filling has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import hole_psnr

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Example


class Metric(hole_psnr.Metric):
    """Hole PSNR of a flat filling; no model changes it."""

    compares = "the surroundings' mean colour with the true result, inside the hole"

    def filled(self, example: Example, output: Tensor, hole: Tensor) -> Tensor:
        known = (~hole).float()
        mean = (example.image * known).sum((1, 2)) / known.sum((1, 2)).clamp_min(1)
        return mean.view(3, 1, 1).expand_as(output)
