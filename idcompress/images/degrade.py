"""Low-resolution inputs for super-resolution: photographs degraded twice over, by chance.

After Real-ESRGAN (arXiv 2107.10833): blur, resize, noise and JPEG, each twice, then a sinc filter and the final size.
Every image is degraded by itself from its own generator: sizes differ between images on the way, and the result
depends on no other image of the batch.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor

from .pictures import to_pil, to_tensor

Range = tuple[float, float]
# (shape, whether both axes have one sigma); the order of `kernel_probs`.
KERNELS = tuple((shape, isotropic) for shape in ("gaussian", "generalized", "plateau") for isotropic in (True, False))
RESIZE_MODES = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class DegradationStage:
    """One round of blur, resize, noise and JPEG. Probabilities in [0, 1]; ranges are drawn from uniformly.

    Attributes:
        blur_prob: of any blur at all.
        sinc_prob: of a sinc kernel where there is a blur.
        kernel_sizes: odd sides of the kernels in px, equally likely.
        kernel_probs: of the entries of KERNELS.
        sigma: of the kernels, px.
        beta_generalized, beta_plateau: exponents of these shapes; below and above 1 are equally likely.
        resize_probs: of enlarging, shrinking, keeping.
        resize_range: least factor when shrinking, largest when enlarging.
        gaussian_noise_prob: of Gaussian noise; Poisson noise else.
        noise_sigma: of Gaussian noise, in 1/255.
        poisson_scale: of Poisson noise, 1 being physical for 8-bit values.
        grey_noise_prob: of one noise for all colours.
        jpeg_quality: 1 .. 100, rounded.
    """

    blur_prob: float
    sigma: Range
    resize_probs: tuple[float, float, float]
    resize_range: Range
    noise_sigma: Range
    poisson_scale: Range
    jpeg_quality: Range
    sinc_prob: float = 0.1
    kernel_sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    kernel_probs: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    beta_generalized: Range = (0.5, 2.0)
    beta_plateau: Range = (1.0, 1.5)
    gaussian_noise_prob: float = 0.5
    grey_noise_prob: float = 0.4


@dataclass(frozen=True)
class Degradation:
    """The whole pipeline; the defaults are those that the published StableSR model was trained with.

    Left out of that training's loader: its one input in a hundred without degradation.

    Attributes:
        scale: side of the input over that of the result.
        first, second: rounds; the first resizes relative to the input, the second relative to the result.
        final_sinc_prob: of a sinc filter at the end.
        jpeg_last_prob: of the second JPEG after the final resize and filter; before them else.
    """

    scale: int = 4
    first: DegradationStage = DegradationStage(
        blur_prob=1.0,
        sigma=(0.2, 1.5),
        resize_probs=(0.2, 0.7, 0.1),
        resize_range=(0.3, 1.5),
        noise_sigma=(1.0, 15.0),
        poisson_scale=(0.05, 2.0),
        jpeg_quality=(60, 95),
    )
    second: DegradationStage = DegradationStage(
        blur_prob=0.5,
        sigma=(0.2, 1.0),
        resize_probs=(0.3, 0.4, 0.3),
        resize_range=(0.6, 1.2),
        noise_sigma=(1.0, 12.0),
        poisson_scale=(0.05, 1.0),
        jpeg_quality=(60, 100),
    )
    final_sinc_prob: float = 0.8
    jpeg_last_prob: float = 0.5


def degrade(
    images: Tensor,
    generators: Sequence[torch.Generator],
    degradation: Degradation = Degradation(),
) -> Tensor:
    """Degrade and shrink images.

    Args:
        images: (B, 3, H, W), float32 in [0, 1], on the CPU; sides multiples of `degradation.scale`.
        generators: one per image, on the CPU; all chance comes from it.

    Returns:
        (B, 3, H / scale, W / scale), float32 in [0, 1].

    Raises:
        ValueError: sides or the number of generators do not fit.
    """
    if len(generators) != len(images):
        raise ValueError(f"got {len(generators)} generators for {len(images)} images, want one per image")
    if any(side % degradation.scale for side in images.shape[-2:]):
        raise ValueError(f"sides must be multiples of {degradation.scale}, got {tuple(images.shape[-2:])}")
    return torch.cat(
        [_degrade_one(image, degradation, g) for image, g in zip(torch.split(images, 1), generators, strict=True)]
    )


def _degrade_one(image: Tensor, degradation: Degradation, generator: torch.Generator) -> Tensor:
    height, width = image.shape[-2:]
    low = (height // degradation.scale, width // degradation.scale)
    first, second = degradation.first, degradation.second

    # 1. first round
    image = _blur(image, first, generator)
    image = _resize_by_chance(image, (height, width), first, generator)
    image = _noise(image, first, generator)
    image = jpeg(image, _quality(first, generator))
    # 2. second round, its JPEG before or after the final resize and filter
    image = _blur(image, second, generator)
    image = _resize_by_chance(image, low, second, generator)
    image = _noise(image, second, generator)
    jpeg_last = _chance(degradation.jpeg_last_prob, generator)
    if not jpeg_last:
        image = jpeg(image, _quality(second, generator))
    image = _resize(image, low, generator)
    if _chance(degradation.final_sinc_prob, generator):
        size = second.kernel_sizes[_choice([1.0] * len(second.kernel_sizes), generator)]
        image = convolve(image, sinc_kernel(size, _uniform((math.pi / 3, math.pi), generator)))
    if jpeg_last:
        image = jpeg(image, _quality(second, generator))
    return image.clamp(0, 1)


def sharpen(image: Tensor) -> Tensor:
    """Unsharp masking, as the targets of Real-ESRGAN and StableSR are sharpened before they are degraded.

    Half of what a Gaussian blur of sigma 8 px takes away is added where that is more than 10/255, with soft borders.

    Args:
        image: (3, H, W), float32 in [0, 1].

    Source: Real-ESRGAN, arXiv 2107.10833, sec. 3.4, with the released code's 51 px, weight 0.5 and threshold 10.
    """
    size, sigma, amount, threshold = 51, 8.0, 0.5, 10 / 255
    row = torch.exp(-0.5 * ((torch.arange(size, dtype=torch.float64) - size // 2) / sigma) ** 2)
    row = (row / row.sum()).float()[None]

    def blur(values: Tensor) -> Tensor:
        return convolve(convolve(values, row), row.T)

    whole = image[None]
    detail = whole - blur(whole)
    share = blur((detail.abs() > threshold).float())
    return torch.lerp(whole, (whole + amount * detail).clamp(0, 1), share)[0]


# chance


def _uniform(bounds: Range, generator: torch.Generator) -> float:
    low, high = bounds
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _chance(probability: float, generator: torch.Generator) -> bool:
    return _uniform((0.0, 1.0), generator) < probability


def _choice(weights: Sequence[float], generator: torch.Generator) -> int:
    return int(torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=generator))


def _quality(stage: DegradationStage, generator: torch.Generator) -> int:
    return round(_uniform(stage.jpeg_quality, generator))


# blur


def gaussian_kernel(
    size: int, sigmas: Range, angle: float = 0.0, *, shape: str = "gaussian", beta: float = 1.0
) -> Tensor:
    """Blur kernel (size, size), float32, of sum 1.

    Args:
        sigmas: standard deviations along the kernel's two axes, px.
        angle: of its axes, radians.
        shape: with d the squared distance in sigmas, "gaussian" exp(-d/2), "generalized" exp(-d^beta/2), "plateau"
            1 / (1 + d^beta).

    Source: Real-ESRGAN, arXiv 2107.10833, sec. 3.1.
    """
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    along = (x * math.cos(angle) + y * math.sin(angle)) / sigmas[0]
    across = (y * math.cos(angle) - x * math.sin(angle)) / sigmas[1]
    distance = along.square() + across.square()
    kernel = 1 / (1 + distance**beta) if shape == "plateau" else torch.exp(-(distance**beta) / 2)
    return (kernel / kernel.sum()).float()


def sinc_kernel(size: int, cutoff: float) -> Tensor:
    """Circular ideal low-pass (size, size), float32, of sum 1, cut off at `cutoff` radians per px: it rings.

    Source: Real-ESRGAN, arXiv 2107.10833, eq. 6.
    """
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    radius = (axis[:, None].square() + axis[None, :].square()).sqrt()
    kernel: Tensor = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    kernel[radius == 0] = cutoff**2 / (4 * math.pi)
    return (kernel / kernel.sum()).float()


def convolve(image: Tensor, kernel: Tensor) -> Tensor:
    """Filter (1, C, H, W) by a kernel of odd sides, mirrored at the borders however small the image is."""
    for dim in (-2, -1):
        reach = kernel.shape[dim] // 2
        period = max(2 * image.shape[dim] - 2, 1)
        place = torch.arange(-reach, image.shape[dim] + reach).remainder(period)
        image = image.index_select(dim, torch.minimum(place, period - place))
    filtered: Tensor = F.conv2d(image.transpose(0, 1), kernel[None, None]).transpose(0, 1)
    return filtered


def _blur(image: Tensor, stage: DegradationStage, generator: torch.Generator) -> Tensor:
    if not _chance(stage.blur_prob, generator):
        return image
    size = stage.kernel_sizes[_choice([1.0] * len(stage.kernel_sizes), generator)]
    if _chance(stage.sinc_prob, generator):
        lowest = math.pi / 3 if size < 13 else math.pi / 5
        return convolve(image, sinc_kernel(size, _uniform((lowest, math.pi), generator)))
    shape, isotropic = KERNELS[_choice(stage.kernel_probs, generator)]
    sigma = _uniform(stage.sigma, generator)
    sigmas = (sigma, sigma if isotropic else _uniform(stage.sigma, generator))
    angle = _uniform((-math.pi, math.pi), generator)
    low, high = stage.beta_plateau if shape == "plateau" else stage.beta_generalized
    side = (low, 1.0) if _chance(0.5, generator) else (1.0, high)
    beta = 1.0 if shape == "gaussian" else _uniform(side, generator)
    return convolve(image, gaussian_kernel(size, sigmas, angle, shape=shape, beta=beta))


# resize


def _resize_by_chance(
    image: Tensor, size: tuple[int, int], stage: DegradationStage, generator: torch.Generator
) -> Tensor:
    direction = _choice(stage.resize_probs, generator)
    bounds = ((1.0, stage.resize_range[1]), (stage.resize_range[0], 1.0), (1.0, 1.0))[direction]
    scale = _uniform(bounds, generator)
    return _resize(image, (max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)), generator)


def _resize(image: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    mode = RESIZE_MODES[_choice([1.0] * len(RESIZE_MODES), generator)]
    return F.interpolate(image, size=size, mode=mode, align_corners=None if mode == "area" else False)


# noise


def _noise(image: Tensor, stage: DegradationStage, generator: torch.Generator) -> Tensor:
    gaussian = _chance(stage.gaussian_noise_prob, generator)
    grey = _chance(stage.grey_noise_prob, generator)
    if gaussian:
        sigma = _uniform(stage.noise_sigma, generator) / 255
        shape = (1, 1 if grey else image.shape[1], *image.shape[-2:])
        return (image + sigma * torch.randn(shape, generator=generator)).clamp(0, 1)
    scale = _uniform(stage.poisson_scale, generator)
    return (image + scale * _poisson_noise(image, grey, generator)).clamp(0, 1)


def _poisson_noise(image: Tensor, grey: bool, generator: torch.Generator) -> Tensor:
    """Shot noise of an 8-bit image: as many photons at full scale as it has values, up to the next power of two."""
    if grey:
        weights = torch.tensor([0.299, 0.587, 0.114])  # ITU-R 601
        image = (image * weights[:, None, None]).sum(dim=1, keepdim=True)
    image = (image.clamp(0, 1) * 255).round() / 255
    values = len(np.unique(image.numpy()))
    photons = 2 ** math.ceil(math.log2(values))
    noisy: Tensor = torch.poisson(image * photons, generator=generator) / photons
    return noisy - image


# JPEG


def jpeg(image: Tensor, quality: int) -> Tensor:
    """Encode and decode (1, 3, H, W) in [0, 1] as a JPEG file with 4:2:0 chroma."""
    file = io.BytesIO()
    to_pil(image[0]).save(file, format="JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file, formats=("JPEG",)) as decoded:
        return to_tensor(decoded)[None]
