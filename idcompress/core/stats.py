"""Statistics of metric values, in float64."""

import math
from collections.abc import Sequence

import torch

MIN_SAMPLE = 4  # fewer images say too little about the spread of the others


def sign_of_mean(values: Sequence[float], total: int, *, confidence: float) -> int:
    """Whether the mean of a finite set lies above 0 (1) or below (-1), judged by some of its members; 0 if left open.

    The bound is Student's for a sample without replacement: the mean of n values of N may be off by up to
    t s / sqrt(n) * sqrt(1 - n / N), t at n - 1 degrees of freedom. It assumes a random sample, and values not far from
    normal for their number.

    Args:
        values: of n members, finite; for a pair of candidates, the differences member by member.
        total: N, the members of the whole set. With n = N the mean itself decides, and 0 means that it is 0.
        confidence: least probability that a sign is not the wrong one, in (0, 1): t is its one-sided quantile.

    Returns:
        -1, 0 or 1; 0 for fewer than MIN_SAMPLE of more members, and where these are all equal, as rates often are,
        because their spread then says nothing about the others'.

    Raises:
        ValueError: more values than members, or a confidence that is none.

    Source: Cochran, Sampling Techniques, 3rd edition, eq. 2.21 and 2.25.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    number = len(values)
    if number > total:
        raise ValueError(f"{number} values of {total} members")
    if number == total:
        mean = math.fsum(values)
        return (mean > 0) - (mean < 0)
    if number < MIN_SAMPLE:
        return 0
    from scipy.special import stdtrit

    mean = math.fsum(values) / number
    variance = math.fsum((value - mean) ** 2 for value in values) / (number - 1)
    reach = float(stdtrit(number - 1, confidence)) * math.sqrt(variance / number * (1 - number / total))
    return 0 if reach == 0 or abs(mean) <= reach else 1 if mean > 0 else -1


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        values: one per image, finite.
        level: coverage, in (0, 1).

    Raises:
        ValueError: no values.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    if not values:
        raise ValueError("a bootstrap interval needs at least one value")
    data = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(values), (resamples, len(values)), generator=generator)
    means = data[picks].mean(dim=1).sort().values
    tail = (1 - level) / 2
    return float(means[math.floor(tail * (resamples - 1))]), float(means[math.ceil((1 - tail) * (resamples - 1))])
