"""Overlapping tiles blended by smooth windows, for latents (per sampling step) and for pixels (per image)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_VARIANCE = 0.01  # of the Gaussian, in units of the tile's side


def gaussian_weights(height: int, width: int) -> Tensor:
    """Return blending weights (height, width), float64.

    As in the published code, the peak lies at (width - 1)/2 across but at height/2 down, half a pixel off centre.
    """

    def profile(length: int, centre: float) -> Tensor:
        offset = (torch.arange(length, dtype=torch.float64) - centre) / length
        density: Tensor = torch.exp(-(offset**2) / (2 * _VARIANCE)) / (2 * torch.pi * _VARIANCE) ** 0.5
        return density

    return torch.outer(profile(height, height / 2), profile(width, (width - 1) / 2))


def cosine_weights(height: int, width: int) -> Tensor:
    """Return blending weights (height, width), float64: raised cosines, which add up to one where tiles share half.

    Tiles of different tone then pass into each other over all that they share; the Gaussian's pass within a tenth.
    """

    def profile(length: int) -> Tensor:
        return torch.sin(torch.pi * (torch.arange(length, dtype=torch.float64) + 0.5) / length) ** 2

    return torch.outer(profile(height), profile(width))


def tile_origins(length: int, tile: int, stride: int) -> list[int]:
    """Return where tiles start along an axis: every stride, the last ones moved back so that none overhangs."""
    return sorted({max(min(origin, length - tile), 0) for origin in range(0, length, stride)})


def count_tiles(height: int, width: int, tile_size: int, tile_overlap: int) -> int:
    """Return how many tiles `blend_tiles` computes for a canvas."""
    stride = tile_size - tile_overlap
    rows, columns = (len(tile_origins(side, min(tile_size, side), stride)) for side in (height, width))
    return rows * columns


def blend_tiles(
    compute: Callable[[slice, slice], Tensor],
    height: int,
    width: int,
    tile_size: int,
    tile_overlap: int,
    window: Callable[[int, int], Tensor] | None = None,
) -> Tensor:
    """Compute a canvas tile by tile and blend where tiles overlap.

    Args:
        compute: (rows, columns) of a tile -> its values (B, C, rows, columns).
        height, width: of the canvas.
        tile_size: side of a tile; an axis shorter than this is covered by one tile of its own length.
        tile_overlap: how much neighbouring tiles share, 0 .. tile_size - 1.
        window: weights of a tile by its sides; None takes `gaussian_weights`, StableSR's.

    Returns:
        (B, C, height, width), dtype of the tiles; with one tile, exactly what `compute` returned.
    """
    if not 0 <= tile_overlap < tile_size:
        raise ValueError(f"an overlap must be at least 0 and below its tile's size, got {tile_overlap} of {tile_size}")
    tile_height, tile_width = min(tile_size, height), min(tile_size, width)
    stride = tile_size - tile_overlap
    tiles = [
        (slice(top, top + tile_height), slice(left, left + tile_width))
        for left in tile_origins(width, tile_width, stride)
        for top in tile_origins(height, tile_height, stride)
    ]
    if len(tiles) == 1:
        return compute(*tiles[0])
    weights = (window or gaussian_weights)(tile_height, tile_width)
    total, weight_sum = None, torch.zeros(height, width)
    for rows, columns in tiles:
        values = compute(rows, columns)
        if total is None:
            dtype = values.dtype
            total = torch.zeros(*values.shape[:-2], height, width, device=values.device)
            weights, weight_sum = weights.to(total), weight_sum.to(total)
        total[..., rows, columns] += values * weights
        weight_sum[rows, columns] += weights
    assert total is not None
    return (total / weight_sum).to(dtype)


def reflect_pad(image: Tensor, size: Sequence[int]) -> Tensor:
    """Extend an image at the right and bottom by its mirror image, as often as it takes."""
    for dim, length in zip((-2, -1), size, strict=True):
        side = image.shape[dim]
        if side < length:
            period = max(2 * side - 2, 1)
            position = torch.arange(length, device=image.device) % period
            image = image.index_select(dim, torch.minimum(position, period - position) if side > 1 else position)
    return image
