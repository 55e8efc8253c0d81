"""Statistics of metric values, in float64."""

import math
from collections.abc import Sequence

import torch


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
