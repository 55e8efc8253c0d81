"""F1 score between the Canny edges of the output and the edge map that it was asked to follow.

Canny thresholds 100 and 200 on 8-bit grey, at the output's resolution. An edge pixel is matched if the other map has
one within 1 px (diagonals included); precision over the output's edges, recall over the condition's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ._metric import ImageMetric, check_same_size

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Batch


def edge_f1(edges: Tensor, wanted: Tensor) -> float:
    """F1 in [0, 1] of two boolean edge maps (H, W) at 1 px tolerance; 1 where both are empty."""
    if not bool(edges.any()) and not bool(wanted.any()):
        return 1.0
    precision = _share_near(edges, wanted)
    recall = _share_near(wanted, edges)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _share_near(edges: Tensor, others: Tensor) -> float:
    """Share of the pixels of `edges` that have one of `others` within 1 px; 0 without edges."""
    near = torch.nn.functional.max_pool2d(others[None, None].float(), kernel_size=3, stride=1, padding=1)[0, 0] > 0
    number = int(edges.sum())
    return int((edges & near).sum()) / number if number else 0.0


def edges_of(batch: Batch) -> tuple[list[Tensor], list[Tensor | None]]:
    """Boolean edge maps (H, W) of a batch's outputs and of its conditions (None where there is none)."""
    from ..images.canny import canny

    edges = list(canny(batch.outputs.float())[:, 0] > 0.5)
    wanted: list[Tensor | None] = []
    for example in batch.examples:
        wanted.append(None if example.condition is None else example.condition.amax(0) > 0.5)
    for example, found, condition in zip(batch.examples, edges, wanted, strict=True):
        if condition is not None:
            check_same_size(example, found, condition, "condition")
    return edges, wanted


class Metric(ImageMetric):
    """Edge F1 of each output with its own condition."""

    unit = ""
    higher_is_better = True
    needs = ("condition",)
    compares = "edges of the output with its condition"

    def per_image(self, batch: Batch) -> list[float]:
        edges, wanted = edges_of(batch)
        return [math.nan if w is None else edge_f1(e, w) for e, w in zip(edges, wanted, strict=True)]
