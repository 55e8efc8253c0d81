"""Judging candidates on a quarter of the images first, and on more only where a bound leaves the answer open.

The quarter, at least MIN_SAMPLE images, is a random one that holds its share of every kind of example, and the same for
all candidates; a half and three quarters follow, then all. What is asked is what all images would say, so the bound is
that of a finite set (`sign_of_mean`), and two candidates are compared image by image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from ..core.stats import MIN_SAMPLE, sign_of_mean
from ..metrics._metric import MetricValue
from .bench import Bench
from .thresholds import AT_LEAST, Threshold, missed

LOOKS = 4  # a quarter of the images more at each

Positions = tuple[int, ...]


@dataclass(frozen=True)
class EarlyStop:
    """How a bench's images are looked at.

    Attributes:
        looks: positions of the examples, each look's with those of the looks before it in front; the last are all.
        confidence: of a decision before the last look, whichever look it is made at.
    """

    looks: tuple[Positions, ...]
    confidence: float = 1.0

    @classmethod
    def of(cls, bench: Bench, metrics: Sequence[str], confidence: float | None) -> EarlyStop:
        """The looks that a bench's examples allow.

        Args:
            metrics: what candidates are judged by; one that belongs to the set of images (FID) wants all of them.
            confidence: None looks at all images.
        """
        number = len(bench.examples)
        parts = min(LOOKS, number // MIN_SAMPLE)
        if confidence is None or parts < 2 or not all(bench.metric(name).by_image for name in metrics):
            return cls((tuple(range(number)),))
        mixed = torch.randperm(number, generator=torch.Generator().manual_seed(bench.seed)).tolist()
        by_kind = sorted(mixed, key=lambda position: bench.examples[position].tags[:1])
        parted = [by_kind[first::parts] for first in range(parts)]
        return cls(tuple(tuple(chain(*parted[: part + 1])) for part in range(parts)), confidence)

    def settled(self, values: Sequence[float]) -> bool | None:
        """Whether the mean over all images is positive, from a look's values; None where that is open."""
        # Whoever looks k times before the end is wrong at one of them k times as often: Bonferroni.
        confidence = 1 - (1 - self.confidence) / max(1, len(self.looks) - 1)
        sign = sign_of_mean(values, len(self.looks[-1]), confidence=confidence)
        return None if sign == 0 else sign > 0

    def better(self, value: MetricValue, other: MetricValue, look: Positions) -> bool | None:
        """Whether a candidate has more than another on all images, from a look at both; None where that is open."""
        if min(len(value.per_image), len(other.per_image)) < len(look):
            return None  # an image without a number, which the mean leaves out
        return self.settled([value.per_image[i] - other.per_image[i] for i in value.per_image])

    def holds(self, threshold: Threshold, value: MetricValue, look: Positions) -> bool | None:
        """Whether a threshold holds on all images, from a look at them; None where that is open."""
        if len(value.per_image) < len(look):
            return None
        sign = 1 if threshold.direction == AT_LEAST else -1
        return self.settled([sign * (number - threshold.bound) for number in value.per_image.values()])


@dataclass(frozen=True)
class Judged:
    """A candidate before its thresholds.

    Attributes:
        values: of the thresholds' metrics, over the images that were looked at.
        missed: thresholds that do not hold, in words.
        images: what was looked at, by position.
    """

    values: dict[str, MetricValue]
    missed: list[str]
    images: dict[int, Tensor]

    def counts(self, bench: Bench) -> dict[str, int]:
        """How many images were looked at, and how many were not because the answer was known."""
        return {"num_images": len(self.images), "num_skipped": len(bench.examples) - len(self.images)}


def judge(
    bench: Bench,
    make: Callable[[Positions], Tensor],
    references: Callable[[Positions], Tensor],
    thresholds: Sequence[Threshold],
    confidence: float | None,
) -> Judged:
    """Measure what some thresholds are about, on as few images as they can be judged by.

    Args:
        make, references: give the candidate's images of some examples, and what they are compared with. One function
            for both says that the candidate is its own reference, and equal to it on every image.
        confidence: of a decision before all images were looked at; None looks at all.
    """
    names = list(dict.fromkeys(threshold.metric for threshold in thresholds))
    stop = EarlyStop.of(bench, names, confidence)
    images: dict[int, Tensor] = {}
    for look in stop.looks:
        fresh = look[len(images) :]
        images |= dict(zip(fresh, make(fresh), strict=True))
        outputs = torch.stack([images[position] for position in look])
        values = bench.measure(names, outputs, references(look), look)
        if look is stop.looks[-1]:
            break
        verdicts = [
            (make is references and values[t.metric].perfect) or stop.holds(t, values[t.metric], look)
            for t in thresholds
        ]
        if False in verdicts or all(verdicts):
            break
    return Judged(values, missed(thresholds, values), images)
