"""CLIP image similarity: cosine between the embeddings of the output and of the input photograph.

High where the edit keeps what the photograph shows. ViT-L/14, images stretched to 224 px by bicubic interpolation, as
in the evaluation of Brooks et al., InstructPix2Pix, CVPR 2023.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._clip import ClipMetric, cosine

if TYPE_CHECKING:
    from ..types import Batch


class Metric(ClipMetric):
    """Cosine of output and input image."""

    needs = ("image",)
    compares = "output with the input photograph"

    def per_image(self, batch: Batch) -> list[float]:
        return [
            cosine(self.clip.encode_image(example.image), self.clip.encode_image(output))
            for example, output in zip(batch.examples, batch.outputs, strict=True)
        ]
