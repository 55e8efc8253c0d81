"""CLIP score: 100 times the cosine between the output and the text that describes it, at least 0.

The text is the caption of the edited image where the data has one, else the prompt. Images go through CLIP's own
preprocessing. Source: Hessel et al., CLIPScore, EMNLP 2021, scaled as in the tables of text-to-image papers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ._clip import ClipMetric, captions_of, cosine

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Batch, Example


class Metric(ClipMetric):
    """Cosine of output and text, in hundredths."""

    needs = ("prompt",)
    compares = "output with the caption that it should fit, or its prompt"
    nothing = "no example has a caption or a prompt"

    def per_image(self, batch: Batch) -> list[float]:
        return [self._score(e, output) for e, output in zip(batch.examples, batch.outputs, strict=True)]

    def _score(self, example: Example, output: Tensor) -> float:
        captions = captions_of(example)
        text = captions[1] if captions else example.prompt
        if not text:
            return math.nan
        return 100 * max(cosine(self.clip.encode_image(output, crop=True), self.clip.encode_text(text)), 0.0)
