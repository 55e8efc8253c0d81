"""PSNR of the enlarged input against the true result, in dB: what super-resolution must not fall far below."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from . import target_psnr
from ._metric import AGAINST

if TYPE_CHECKING:
    from ..types import Batch


class Metric(target_psnr.Metric):
    """Target PSNR of the bicubically enlarged input; no model changes it."""

    subject = "bicubically enlarged input"
    compares = f"{subject} with {AGAINST['target']}"

    def per_image(self, batch: Batch) -> list[float]:
        return super().per_image(replace(batch, outputs=batch.stack("image")))
