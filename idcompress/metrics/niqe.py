"""NIQE: how far an image's statistics lie from those of undistorted photographs; no reference, lower is better.

Locally normalised luma is cut into blocks of 96 px; 18 parameters of asymmetric generalised Gaussians per block, at two
scales, are fitted by one Gaussian, whose distance to that of pristine photographs is the value. Computed in float64 on
rounded 8-bit BT.601 luma. Where an image is perfectly flat the sign of rounding errors counts, and programs differ by
1 %. Source: Mittal et al., Making a "Completely Blind" Image Quality Analyzer, IEEE SPL 2013.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from ..errors import IdcError
from ..runs.files import file_digest
from ._metric import ImageMetric
from ._weights import find_weights, tensors_digest
from .psnr_y import studio_luma

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Batch

PARAMETERS_FILE = "niqe_pris_params.npz"
_SOURCE = f"https://github.com/XPixelGroup/BasicSR (basicsr/metrics/{PARAMETERS_FILE})"
_DIGEST = "b836085c99d65a592759b129edf1707d28e0cc9b2606a2d4722cd27474f2bcff"
_BLOCK_PX = 96
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # right, below, both diagonals


def niqe(luma: Tensor, mean: Tensor, covariance: Tensor, window: Tensor) -> float:
    """NIQE of one image.

    Args:
        luma: (H, W), whole numbers in [0, 255], float64, at least two blocks of 96 px.
        mean, covariance: of the 36 features of pristine photographs.
        window: (7, 7), of the local means.

    Returns:
        NaN where less than two blocks hold any structure.
    """
    height, width = (side - side % _BLOCK_PX for side in luma.shape)
    image = luma[None, None, :height, :width]
    scales = [_features(_blocks(_normalised(image, window), _BLOCK_PX))]
    scales.append(_features(_blocks(_normalised(_halved(image), window), _BLOCK_PX // 2)))
    features = torch.cat(scales, dim=1)
    features = features[features.isfinite().all(dim=1)]
    if len(features) < 2:
        return math.nan
    difference = features.mean(0) - mean
    return float((difference @ torch.linalg.pinv((covariance + features.T.cov()) / 2) @ difference).sqrt())


def _normalised(image: Tensor, window: Tensor) -> Tensor:
    """Subtract the local mean and divide by the local deviation plus one; (1, 1, H, W)."""

    def local(values: Tensor) -> Tensor:
        return F.conv2d(F.pad(values, [window.shape[-1] // 2] * 4, mode="replicate"), window[None, None])

    mean = local(image)
    return (image - mean) / ((local(image.square()) - mean.square()).abs().sqrt() + 1)


def _halved(image: Tensor) -> Tensor:
    """Antialiased bicubic reduction by two, the border mirrored, as MATLAB's imresize does it; (1, 1, H, W)."""
    for dim in (2, 3):
        first, last = (image.narrow(dim, start, 8).flip(dim) for start in (0, image.shape[dim] - 8))
        image = torch.cat([first, image, last], dim)
    size = [side // 2 for side in image.shape[2:]]
    return F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)[..., 4:-4, 4:-4]


def _blocks(image: Tensor, side: int) -> Tensor:
    """(1, 1, H, W) to (blocks, side, side)."""
    return F.unfold(image, side, stride=side)[0].T.reshape(-1, side, side)


def _features(blocks: Tensor) -> Tensor:
    """18 features of each block: the shape and scale of its values, and shape, mean and scales of their products."""
    shape, left, right = _fit(blocks)
    columns = [shape, (left + right) / 2]
    for shift in _NEIGHBOURS:
        shape, left, right = _fit(blocks * blocks.roll(shift, dims=(1, 2)))
        mean = (right - left) * (torch.lgamma(2 / shape) - torch.lgamma(1 / shape)).exp()
        columns += [shape, mean, left, right]
    return torch.stack(columns, dim=1)


def _fit(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit asymmetric generalised Gaussians by moments: shape, left scale and right scale of each block."""
    values = blocks.flatten(1)
    negative, positive = values.clamp(max=0), values.clamp(min=0)
    left = (negative.square().sum(1) / (values < 0).sum(1)).sqrt()
    right = (positive.square().sum(1) / (values > 0).sum(1)).sqrt()
    ratio = left / right
    moments = values.abs().mean(1).square() / values.square().mean(1)
    wanted = moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1).square()
    shapes = torch.arange(0.2, 10.001, 0.001, dtype=torch.float64)
    of_shape = (2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)).exp()
    shape = shapes[(of_shape - wanted[:, None]).abs().argmin(dim=1)]
    scale = ((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2).exp()
    return shape, left * scale, right * scale


class Metric(ImageMetric):
    """NIQE of every output; it is compared with nothing."""

    unit = ""
    higher_is_better = False
    compares = "the output alone, with statistics of undistorted photographs"
    weights: ClassVar[str] = _SOURCE
    nothing = "no output holds enough structure"

    def __init__(self, *, weights: str = "") -> None:
        """Args: weights: the parameters of pristine photographs; "": looked for.

        Raises:
            IdcError: the file is absent, or is not the published one.
        """
        super().__init__()
        path = find_weights((PARAMETERS_FILE,), path=weights, source=_SOURCE, metric="niqe")
        try:
            with np.load(path, allow_pickle=False) as file:
                parameters = {name: torch.from_numpy(file[name]) for name in file.files}
        except (ValueError, OSError) as error:
            raise IdcError(f"{path} is not readable ({error}); want an unchanged {PARAMETERS_FILE}") from None
        if tensors_digest(parameters) != _DIGEST:
            raise IdcError(
                f"{path} is not the published {PARAMETERS_FILE} that niqe is defined on; get it from {_SOURCE}"
            )
        names = ("mu_pris_param", "cov_pris_param", "gaussian_window")
        mean, covariance, window = (parameters[name].double() for name in names)
        self._parameters = (mean[0], covariance, window)
        self.weight_digests[path.name] = file_digest(path)

    def per_image(self, batch: Batch) -> list[float]:
        return [self._value(output) for output in batch.outputs]

    def _value(self, output: Tensor) -> float:
        height, width = output.shape[-2:]
        if (height // _BLOCK_PX) * (width // _BLOCK_PX) < 2:
            raise IdcError(
                f"niqe wants images of at least {_BLOCK_PX}x{2 * _BLOCK_PX} px, got {width}x{height}; leave niqe out"
            )
        # Rounded twice: outputs are pictures of 8 bits, and so is their luma.
        pixels = (output.clamp(0, 1) * 255).round() / 255
        return niqe((studio_luma(pixels)[0] * 255).round(), *self._parameters)
