"""Share of easy edits whose output is nearer to the true edit than the input photograph is.

Nearer in PSNR, so an output that copies its input counts as a failure. Examples tagged "hard" are left to
`hard_edit_success_rate`, and edits that change nothing in their photograph to nobody.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from ._metric import ImageMetric, check_same_size

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Batch, Example


class Metric(ImageMetric):
    """1 or 0 per easy example; its mean is the rate."""

    unit = ""
    higher_is_better = True
    needs = ("image", "target")
    compares = "output and input photograph, each with the true edit; easy edits"
    judges_hard: ClassVar[bool] = False

    def per_image(self, batch: Batch) -> list[float]:
        return [self._succeeds(e, output) for e, output in zip(batch.examples, batch.outputs, strict=True)]

    def _succeeds(self, example: Example, output: Tensor) -> float:
        if example.target is None or ("hard" in example.tags) != self.judges_hard:
            return math.nan
        check_same_size(example, output, example.target, "target")
        before = float((example.image.double() - example.target.double()).square().mean())
        after = float((output.double() - example.target.double()).square().mean())
        return math.nan if before == 0 else float(after < before)
