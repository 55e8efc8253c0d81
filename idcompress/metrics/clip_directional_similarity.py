"""CLIP text-image directional similarity: does the image change the way its caption does?

Cosine between (output embedding - input embedding) and (caption of the edited image - caption of the input), as in
Gal et al. (StyleGAN-NADA) and the evaluation of InstructPix2Pix. An instruction is no caption: examples without the
pair of captions have no value. An output that equals its input has no direction and counts 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ._clip import ClipMetric, captions_of, cosine

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Batch, Example


class Metric(ClipMetric):
    """Cosine of the two directions."""

    needs = ("image", "captions")
    compares = "change from input photograph to output with change from the one's caption to the other's"
    nothing = "no example has captions of its input and of its edited image (data with input and output captions)"

    def per_image(self, batch: Batch) -> list[float]:
        return [self._similarity(e, output) for e, output in zip(batch.examples, batch.outputs, strict=True)]

    def _similarity(self, example: Example, output: Tensor) -> float:
        captions = captions_of(example)
        if captions is None:
            return math.nan
        before, after = (self.clip.encode_text(caption) for caption in captions)
        change = self.clip.encode_image(output) - self.clip.encode_image(example.image)
        if not bool((after - before).any()):
            return math.nan
        return cosine(change, after - before) if bool(change.any()) else 0.0
