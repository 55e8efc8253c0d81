"""LPIPS of the output's hole, in the true surroundings, against the true photograph; 0 for identical ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from . import target_lpips
from ._metric import AGAINST

if TYPE_CHECKING:
    from ..types import Batch


class Metric(target_lpips.Metric):
    """Target LPIPS of the hole pasted into the photograph, so that the autoencoder's error elsewhere does not count."""

    needs = ("target", "condition")  # type: ignore[assignment]  # its base has one
    compares = f"output with {AGAINST['target']}, inside the hole"

    def per_image(self, batch: Batch) -> list[float]:
        pasted = [
            output
            if example.target is None or example.condition is None
            else torch.where(example.condition > 0.5, output, example.target)
            for example, output in zip(batch.examples, batch.outputs, strict=True)
        ]
        return super().per_image(replace(batch, outputs=torch.stack(pasted)))
