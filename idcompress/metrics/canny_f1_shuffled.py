"""Chance level of `canny_f1`: the output's edges against the edge map of another photograph.

Each example meets the next one, in index order and round the end, that comes from another photograph and has its size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ._metric import ImageMetric, MetricValue, check_outputs
from .canny_f1 import edge_f1, edges_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Batch


@dataclass(frozen=True)
class _Edges:
    """Edge maps of one example, packed to bits: the set must be complete before anything is compared."""

    photo: str
    size: tuple[int, int]
    output: np.ndarray[tuple[int], np.dtype[np.uint8]]
    condition: np.ndarray[tuple[int], np.dtype[np.uint8]]


class Metric(ImageMetric):
    """Edge F1 of each output with another photograph's condition; the lower, the more `canny_f1` means."""

    unit = ""
    higher_is_better = False
    by_image = False
    needs = ("condition",)
    compares = "edges of the output with another photograph's condition"
    nothing = "no two photographs of this set have conditions of one size"

    def reset(self) -> None:
        super().reset()
        self._edges: dict[int, _Edges] = {}

    def per_image(self, batch: Batch) -> list[float]:
        raise NotImplementedError("a value needs the other photographs of the set: use update and compute")

    def update(self, batch: Batch) -> None:
        check_outputs(batch)
        for example, found, wanted in zip(batch.examples, *edges_of(batch), strict=True):
            if wanted is not None:
                size = (found.shape[0], found.shape[1])
                packed = (np.packbits(edges.numpy()) for edges in (found, wanted))
                self._edges[example.index] = _Edges(example.photo, size, *packed)

    def compute(self) -> MetricValue:
        ordered = sorted(self._edges.items())
        self._values = {}
        for position, (index, own) in enumerate(ordered):
            others = (edges for _, edges in ordered[position + 1 :] + ordered[:position])
            other = next((o for o in others if o.photo != own.photo and o.size == own.size), None)
            if other is not None:
                self._values[index] = edge_f1(_unpack(own.output, own.size), _unpack(other.condition, own.size))
        return super().compute()


def _unpack(bits: np.ndarray[tuple[int], np.dtype[np.uint8]], size: tuple[int, int]) -> Tensor:
    height, width = size
    return torch.from_numpy(np.unpackbits(bits, count=height * width).astype(bool)).view(height, width)
