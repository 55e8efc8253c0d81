"""PSNR of the output against the true photograph inside the hole, in dB."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ._metric import AGAINST, ImageMetric, check_same_size
from .psnr import psnr

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Batch, Example


class Metric(ImageMetric):
    """PSNR over the pixels where the example's condition, its mask, is 1."""

    unit = "dB"
    higher_is_better = True
    needs = ("target", "condition")
    compares = f"output with {AGAINST['target']}, inside the hole"

    def per_image(self, batch: Batch) -> list[float]:
        return [self._value(example, output) for example, output in zip(batch.examples, batch.outputs, strict=True)]

    def filled(self, example: Example, output: Tensor, hole: Tensor) -> Tensor:
        """What the hole is filled with, (3, H, W); `hole` is (3, H, W), bool."""
        return output

    def _value(self, example: Example, output: Tensor) -> float:
        if example.target is None or example.condition is None:
            return math.nan
        check_same_size(example, output, example.target, "target")
        hole = example.condition > 0.5
        return psnr(self.filled(example, output, hole)[hole], example.target[hole])
