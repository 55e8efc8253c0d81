"""Masks of holes: 1 where a picture is to be filled, 0 where it is kept."""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageDraw
from torch import Tensor

KINDS = ("box", "free_form")


def box_mask(height: int, width: int, generator: torch.Generator) -> Tensor:
    """One rectangle, each side 25 to 60 % of the picture's; (1, height, width), float32, 0 or 1."""
    first, second, third, fourth = torch.rand(4, generator=generator).tolist()
    tall, wide = round(height * (0.25 + 0.35 * first)), round(width * (0.25 + 0.35 * second))
    top, left = round(third * (height - tall)), round(fourth * (width - wide))
    mask = torch.zeros(1, height, width)
    mask[:, top : top + tall, left : left + wide] = 1
    return mask


def free_form_mask(height: int, width: int, generator: torch.Generator) -> Tensor:
    """One to three broad brush strokes that turn back and forth; (1, height, width), float32, 0 or 1.

    Source: Yu et al., free-form masks for gated convolution, arXiv:1806.03589, Alg. 1, with lengths and
    breadths as shares of the shorter side.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    side = min(height, width)
    picture = Image.new("L", (width, height))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(uniform(1, 4))):
        x, y = uniform(0, width), uniform(0, height)
        heading, breadth = uniform(0, 2 * math.pi), uniform(0.08, 0.18) * side
        for corner in range(int(uniform(3, 7))):
            angle = heading + uniform(-0.6, 0.6) + (math.pi if corner % 2 else 0)
            length = uniform(0.2, 0.5) * side
            x_next = min(max(x + length * math.cos(angle), 0), width)
            y_next = min(max(y + length * math.sin(angle), 0), height)
            pen.line((x, y, x_next, y_next), fill=1, width=max(1, round(breadth)))
            for end_x, end_y in ((x, y), (x_next, y_next)):
                pen.ellipse(
                    [end_x - breadth / 2, end_y - breadth / 2, end_x + breadth / 2, end_y + breadth / 2], fill=1
                )
            x, y = x_next, y_next
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(1, height, width).float()


def draw_mask(kind: str, height: int, width: int, generator: torch.Generator) -> Tensor:
    """A mask of one of KINDS, (1, height, width), float32, 0 or 1, never empty."""
    return {"box": box_mask, "free_form": free_form_mask}[kind](height, width, generator)


def masked(image: Tensor, mask: Tensor) -> Tensor:
    """The image (..., 3, H, W) in [-1, 1] with its hole in mid-grey, as diffusers' pipelines prepare it."""
    return image * (mask < 0.5)
