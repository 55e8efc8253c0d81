"""Canny edge maps, the condition of the control branch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def canny(image: Tensor, low: int = 100, high: int = 200) -> Tensor:
    """Canny edges of the 8-bit grey image, as ControlNet's annotator cuts them.

    Args:
        image: (B, 3, H, W) float in [0, 1].
        low: hysteresis threshold on the 8-bit gradient (L1 norm, Sobel 3x3) below which a pixel is no edge.
        high: threshold above which a pixel starts an edge.

    Returns:
        (B, 1, H, W) of the same dtype and device: 1 on edges, 0 elsewhere.

    Source: OpenCV's `cv2.Canny` on `COLOR_RGB2GRAY`.
    """
    import cv2  # only here: OpenCV is not needed to import this package

    pixels = (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    maps = np.stack([cv2.Canny(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), low, high) for picture in pixels])
    return torch.from_numpy(maps > 0).unsqueeze(1).to(dtype=image.dtype, device=image.device)
