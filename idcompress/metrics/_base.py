"""What a metric is: per-image values with a direction and a unit, averaged in an order that no batch size can change."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from ..types import Batch


@dataclass(frozen=True)
class MetricValue:
    """A metric over a set of images.

    Attributes:
        value: the mean (float64), None where it is not a finite number; then `note` says why.
        per_image: the values by example index, where the metric has them.
    """

    value: float | None
    per_image: dict[int, float]
    note: str = ""


class ImageMetric(ABC):
    """A metric with a value per image; one file each, whose `Metric` class this is the base of.

    Class attributes:
        unit: "dB", "%", "" ...
        higher_is_better: direction.
        needs: fields of the examples (`image`, `target`, `condition`, `prompt`) or `references` that it compares with.
        compares: in words, for `idc ls` and the report.
        weights: where its weights come from; "" if it has none.
    """

    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]
    needs: ClassVar[tuple[str, ...]] = ()
    compares: ClassVar[str]
    weights: ClassVar[str] = ""

    def __init__(self) -> None:
        self._values: dict[int, float] = {}

    @abstractmethod
    def per_image(self, batch: Batch) -> list[float]:
        """One value per image; NaN where the image has nothing to compare with (it is left out of the mean)."""

    def update(self, batch: Batch) -> None:
        for example, value in zip(batch.examples, self.per_image(batch), strict=True):
            self._values[example.index] = value

    def compute(self) -> MetricValue:
        values = {i: v for i, v in sorted(self._values.items()) if not math.isnan(v)}
        if not values:
            return MetricValue(None, {}, "no image of this set has anything to compare with")
        infinite = sum(math.isinf(v) for v in values.values())
        if infinite:
            return MetricValue(None, values, f"{infinite} of {len(values)} images equal their reference exactly")
        return MetricValue(math.fsum(values.values()) / len(values), values)
