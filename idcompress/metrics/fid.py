"""Fréchet Inception distance between the outputs and real images; biased upwards for small sets.

|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) with sample covariances, on the standard Inception weights. Source:
Heusel et al., NeurIPS 2017. Values over different numbers of images do not compare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from ._inception import InceptionMetric

if TYPE_CHECKING:
    from torch import Tensor


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to (N, D) and (M, D), float64, N and M at least 2.

    With S = R^T R from a QR decomposition, tr((S1 S2)^(1/2)) is the sum of the singular values of R1 R2^T: exact for
    singular covariances too, where a matrix square root is not.
    """
    difference = features.mean(0) - others.mean(0)
    one, other = _covariance_root(features), _covariance_root(others)
    cross = torch.linalg.svdvals(one @ other.T).sum()
    distance = difference.square().sum() + one.square().sum() + other.square().sum() - 2 * cross
    return max(float(distance), 0.0)


def _covariance_root(features: Tensor) -> Tensor:
    """R (min(N, D), D) with R^T R the sample covariance."""
    centred = (features - features.mean(0)) / (features.shape[0] - 1) ** 0.5
    root: Tensor = torch.linalg.qr(centred, mode="r").R
    return root


class Metric(InceptionMetric):
    """FID of the set of outputs."""

    least_images: ClassVar[int] = 2048  # fewer than features leave the covariances singular, and FID far too high

    def distance(self, features: Tensor, others: Tensor) -> float:
        return frechet_distance(features, others)
