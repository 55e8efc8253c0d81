"""What a metric is: per-image values with a direction and a unit, and a mean that no batch size can change."""

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
        value: the mean (float64) of the finite values, None where there is none; then `note` says why.
        per_image: the values by example index, where the metric has them.
        perfect: every image equals its reference exactly, so a logarithmic metric has no number and any bound holds.
    """

    value: float | None
    per_image: dict[int, float]
    note: str = ""
    perfect: bool = False


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
        finite = {i: v for i, v in values.items() if math.isfinite(v)}
        if not finite:
            return MetricValue(None, {}, "every image equals its reference exactly", perfect=True)
        left_out = len(values) - len(finite)
        note = f"{left_out} of {len(values)} images equal their reference exactly and are left out" if left_out else ""
        return MetricValue(math.fsum(finite.values()) / len(finite), finite, note)
