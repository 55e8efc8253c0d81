"""What a metric is: per-image values with a direction and a unit, and a mean that no batch size can change."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ..errors import IdcError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Batch, Example

AGAINST = {
    "references": "the full model's result at the reference steps",
    "target": "the true result",
    "image": "the input photograph",
}


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

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> Self:
        """From its fields as JSON has them, with indices as strings."""
        return cls(**{**fields, "per_image": {int(index): number for index, number in fields["per_image"].items()}})


def in_words(value: float | None, *, perfect: bool) -> str:
    """A mean as the console shows it: "equal" where all images equal their references, "-" where none was compared."""
    if perfect:
        return "equal"
    return "-" if value is None else f"{value:.3f}"


def perfect_ones(values: Mapping[str, MetricValue]) -> dict[str, list[str]]:
    """What a row of a trace or of metrics.json says of metrics without a number: {"perfect": names}, {} without any.

    A metric that has no number and is not named there had nothing to compare with.
    """
    names = [name for name, value in values.items() if value.perfect]
    return {"perfect": names} if names else {}


def together(value: MetricValue, other: MetricValue) -> MetricValue:
    """A metric of two sets of images as one, from its values by image."""
    numbers = value.per_image | other.per_image
    if not numbers:
        return MetricValue(None, {}, other.note, perfect=value.perfect or other.perfect)
    return MetricValue(math.fsum(numbers.values()) / len(numbers), numbers, other.note)


class ImageMetric(ABC):
    """A metric over a set of images; one file each, whose `Metric` class this is the base of.

    Attributes:
        unit: "dB", "%", "" ...
        higher_is_better: direction.
        needs: fields of the examples (`image`, `target`, `condition`, `prompt`) or `references` that it compares with.
        compares: in words, for `idc ls` and the report.
        weights: where its weights come from; "" if it has none.
        least_images: on fewer images a bound on it means nothing.
        weight_digests: SHA-256 of the weight files in use, by file name.
        nothing: the note where no image has anything to compare with.
        by_image: whether images have values of their own, whose mean it is; False for distances of sets.
    """

    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]
    needs: tuple[str, ...] = ()
    compares: str
    weights: ClassVar[str] = ""
    least_images: ClassVar[int] = 1
    nothing: ClassVar[str] = "no image of this set has anything to compare with"
    by_image: ClassVar[bool] = True

    def __init__(self) -> None:
        self.weight_digests: dict[str, str] = {}
        self.reset()

    def reset(self) -> None:
        """Forget every example."""
        self._values: dict[int, float] = {}

    def fresh(self) -> Self:
        """The same metric, with the same weights in memory, that has seen no example."""
        new = copy.copy(self)
        new.reset()
        return new

    @abstractmethod
    def per_image(self, batch: Batch) -> list[float]:
        """One value per image; NaN where the image has nothing to compare with (it is left out of the mean)."""

    def update(self, batch: Batch) -> None:
        """Take in a batch; an example seen before is replaced.

        Raises:
            IdcError: an output holds NaN or infinity, which no metric may take for a missing value.
        """
        check_outputs(batch)
        for example, value in zip(batch.examples, self.per_image(batch), strict=True):
            self._values[example.index] = value

    def compute(self) -> MetricValue:
        values = {i: v for i, v in sorted(self._values.items()) if not math.isnan(v)}
        if not values:
            return MetricValue(None, {}, self.nothing)
        finite = {i: v for i, v in values.items() if math.isfinite(v)}
        if not finite:
            return MetricValue(None, {}, "every image equals its reference exactly", perfect=True)
        left_out = len(values) - len(finite)
        note = f"{left_out} of {len(values)} images equal their reference exactly and are left out" if left_out else ""
        return MetricValue(math.fsum(finite.values()) / len(finite), finite, note)


class PairMetric(ImageMetric):
    """A metric of each output against one other image of the same size.

    Attributes:
        subject: what of the two images is compared.
    """

    subject: ClassVar[str] = "output"
    needs = ("references",)
    compares = f"output with {AGAINST['references']}"

    def __init__(self, *, against: str = "references") -> None:
        """Args: against: `references`, `target` or `image`, see AGAINST."""
        super().__init__()
        if against not in AGAINST:
            raise IdcError(f"no image to compare with is called {against!r}{did_you_mean(against, AGAINST)}")
        self.against = against
        self.needs = (against,)
        self.compares = f"{self.subject} with {AGAINST[against]}"

    @abstractmethod
    def compare(self, output: Tensor, other: Tensor) -> float:
        """The value of one pair of images, (3, H, W) float32 in [0, 1]."""

    def per_image(self, batch: Batch) -> list[float]:
        values = []
        for position, (example, output) in enumerate(zip(batch.examples, batch.outputs, strict=True)):
            other = other_image(batch, position, self.against)
            if other is None:
                values.append(math.nan)
                continue
            check_same_size(example, output, other, self.against)
            values.append(self.compare(output, other))
        return values


def other_image(batch: Batch, position: int, name: str) -> Tensor | None:
    """What an output is compared with (`references`, `target` or `image`), None where there is none."""
    if name == "references":
        return None if batch.references is None else batch.references[position]
    other: Tensor | None = getattr(batch.examples[position], name)
    return other


def check_outputs(batch: Batch) -> None:
    """Refuse outputs and references that hold NaN or infinity: no metric may take them for equal."""
    for what, images in (("output", batch.outputs), ("reference", batch.references)):
        for example, image in zip(batch.examples, images if images is not None else (), strict=images is not None):
            if not bool(image.isfinite().all()):
                raise IdcError(f"the {what} for {example.name!r} holds NaN or infinity; try dtype=float32")


def check_same_size(example: Example, output: Tensor, other: Tensor, name: str) -> None:
    """Refuse to compare images of different sizes."""
    if output.shape[-2:] != other.shape[-2:]:
        got, wanted = (f"{s.shape[-1]}x{s.shape[-2]}" for s in (output, other))
        raise IdcError(f"the output for {example.name!r} is {got} px, its {name} is {wanted} px; they must be one size")


def check_min_size(output: Tensor, minimum_px: int, metric: str) -> None:
    """Refuse images that are smaller than a metric's window or network takes."""
    if min(output.shape[-2:]) < minimum_px:
        size = f"{output.shape[-1]}x{output.shape[-2]}"
        raise IdcError(f"{metric} wants images of at least {minimum_px} px a side, got {size}; leave {metric} out")
