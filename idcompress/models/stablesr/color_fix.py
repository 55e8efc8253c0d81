"""Colour corrections of a restored image towards its low-resolution input, from which sampling drifts."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

WAVELET_LEVELS = 5


def adain_color_fix(content: Tensor, style: Tensor) -> Tensor:
    """Give every channel of an image the mean and standard deviation of another image's channel.

    Args:
        content: restored image, (B, C, H, W), usually in [-1, 1].
        style: low-resolution image, (B, C, any size).

    Returns:
        (B, C, H, W), not clamped.

    Source: adaptive instance normalisation (arXiv 1703.06868, eq. 8), with the variance over n - 1 and 1e-5 added.
    """

    def statistics(image: Tensor) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(image, dim=(-2, -1), keepdim=True, correction=1)
        return mean, (variance + 1e-5).sqrt()

    content_mean, content_std = statistics(content)
    style_mean, style_std = statistics(style)
    return (content - content_mean) / content_std * style_std + style_mean


def wavelet_low_band(image: Tensor) -> Tensor:
    """Blur an image (B, C, H, W) by the [1 2 1]/4 kernel at dilations 1, 2, 4, 8, 16, borders replicated."""
    channels = image.shape[1]
    kernel = image.new_tensor([1.0, 2.0, 1.0]) / 4
    kernel = (kernel[:, None] * kernel[None, :]).expand(channels, 1, 3, 3)
    for level in range(WAVELET_LEVELS):
        radius = 2**level
        image = F.conv2d(F.pad(image, (radius,) * 4, mode="replicate"), kernel, dilation=radius, groups=channels)
    return image


def wavelet_color_fix(content: Tensor, style: Tensor) -> Tensor:
    """Keep the fine bands of an image and take the coarse band of another.

    The five detail bands of the a-trous decomposition sum to the image minus its last blur.

    Args:
        content: restored image, (B, C, H, W).
        style: low-resolution image resized to the same shape.

    Returns:
        (B, C, H, W), not clamped.
    """
    return content - wavelet_low_band(content) + wavelet_low_band(style)
