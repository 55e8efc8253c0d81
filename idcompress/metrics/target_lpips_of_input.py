"""LPIPS of the input against the true result: what a result has to beat."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from . import target_lpips
from ._metric import AGAINST

if TYPE_CHECKING:
    from ..types import Batch


class Metric(target_lpips.Metric):
    """Target LPIPS of the unchanged input; no model changes it."""

    subject = "input"
    compares = f"{subject} with {AGAINST['target']}"

    def per_image(self, batch: Batch) -> list[float]:
        return super().per_image(replace(batch, outputs=batch.stack("image")))
