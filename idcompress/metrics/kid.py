"""Kernel Inception distance between the outputs and real images; unbiased, so it may be slightly below 0.

Squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, estimated without bias over the whole set (other
programs average over random subsets, which has the same expectation). Source: Binkowski et al., ICLR 2018.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._inception import InceptionMetric

if TYPE_CHECKING:
    from torch import Tensor


def kernel_distance(features: Tensor, others: Tensor) -> float:
    """Unbiased squared MMD of (N, D) and (M, D), float64, N and M at least 2."""

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        return (one @ other.T / one.shape[1] + 1) ** 3

    def within(one: Tensor) -> Tensor:
        values = kernel(one, one)
        return (values.sum() - values.diagonal().sum()) / (len(one) * (len(one) - 1))

    return float(within(features) + within(others) - 2 * kernel(features, others).mean())


class Metric(InceptionMetric):
    """KID of the set of outputs."""

    def distance(self, features: Tensor, others: Tensor) -> float:
        return kernel_distance(features, others)
