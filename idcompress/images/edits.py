"""Instruction edits whose true result is computable, so that an edit can be judged and not only admired.

Easy edits keep every pixel in its place and change tones; hard edits move content and need context from far away.
All are pure functions of an image batch, (B, 3, H, W) float in [0, 1], and return the same shape and range.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Edit:
    """One instruction: its name, whether it moves content, the prompts that ask for it, and its true result.

    Attributes:
        name: identifier, also the row name in evaluation tables.
        hard: True when content changes place (flip, zoom, swap), False when only tones change.
        phrasings: prompts, lower case, unique over all edits.
        apply: (B, 3, H, W) float in [0, 1] to the same.
    """

    name: str
    hard: bool
    phrasings: tuple[str, ...]
    apply: Callable[[Tensor], Tensor]


def luma(image: Tensor) -> Tensor:
    """Return the BT.601 luma, (B, 1, H, W), of an RGB batch (B, 3, H, W) in [0, 1]."""
    weights = torch.tensor(_LUMA, dtype=image.dtype, device=image.device).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True)


def _gain(image: Tensor, red: float, green: float, blue: float) -> Tensor:
    factors = torch.tensor((red, green, blue), dtype=image.dtype, device=image.device).view(1, 3, 1, 1)
    return (image * factors).clamp(0, 1)


def _toned(image: Tensor, dark: tuple[float, float, float], light: tuple[float, float, float]) -> Tensor:
    """Map luma 0 to `dark` and luma 1 to `light`, linearly."""
    low = torch.tensor(dark, dtype=image.dtype, device=image.device).view(1, 3, 1, 1)
    high = torch.tensor(light, dtype=image.dtype, device=image.device).view(1, 3, 1, 1)
    return low + (high - low) * luma(image)


def _blur(image: Tensor, sigma_share: float) -> Tensor:
    """Gaussian blur with sigma = `sigma_share` of the shorter side and reflected borders."""
    height, width = image.shape[-2:]
    sigma = sigma_share * min(height, width)
    radius = min(math.ceil(3 * sigma), height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).expand(3, 1, 1, -1)
    padded = functional.pad(image, (radius, radius, radius, radius), mode="reflect")
    rows = functional.conv2d(padded, kernel, groups=3)
    return functional.conv2d(rows, kernel.transpose(2, 3), groups=3)


def _sketch(image: Tensor) -> Tensor:
    """Dark lines on white paper where the luma gradient is large."""
    grey = functional.pad(luma(image), (1, 1, 1, 1), mode="replicate")
    horizontal = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    vertical = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    strength = (horizontal.square() + vertical.square()).sqrt()
    return (1 - 2.5 * strength).clamp(0, 1).expand(-1, 3, -1, -1)


def _posterize(image: Tensor) -> Tensor:
    """Two levels per channel."""
    return (image > 0.5).to(image.dtype)


def _strong_contrast(image: Tensor) -> Tensor:
    """Stretch by three around the middle grey."""
    return ((image - 0.5) * 3 + 0.5).clamp(0, 1)


def _zoom_in(image: Tensor) -> Tensor:
    """Enlarge the central half by two, bilinearly."""
    height, width = image.shape[-2:]
    top, left = height // 4, width // 4
    centre = image[..., top : top + height // 2, left : left + width // 2]
    return functional.interpolate(centre, size=(height, width), mode="bilinear", align_corners=False)


def _swap_halves(image: Tensor) -> Tensor:
    """Exchange the left and the right half."""
    return image.roll(image.shape[-1] // 2, dims=-1)


def _mirror_left(image: Tensor) -> Tensor:
    """Replace the right half by the mirrored left half."""
    half = (image.shape[-1] + 1) // 2
    left = image[..., :half]
    return torch.cat([left, left[..., : image.shape[-1] - half].flip(-1)], dim=-1)


_EASY = (
    Edit(
        "grayscale",
        False,
        ("make it grayscale", "turn it black and white", "remove the colors", "desaturate the photo"),
        lambda image: _toned(image, (0.12, 0.12, 0.12), (1.0, 1.0, 1.0)),
    ),
    Edit(
        "sepia",
        False,
        ("make it sepia", "give it an old photo look", "add a sepia tone"),
        lambda image: _toned(image, (0.16, 0.08, 0.0), (1.0, 0.86, 0.62)),
    ),
    Edit(
        "warmer",
        False,
        ("make it warmer", "add warm light", "give it a warm look"),
        lambda image: _gain(image, 1.35, 0.95, 0.5),
    ),
    Edit(
        "colder",
        False,
        ("make it colder", "add cold light", "give it a cold look"),
        lambda image: _gain(image, 0.5, 0.95, 1.35),
    ),
    Edit(
        "darker",
        False,
        ("make it darker", "turn down the light", "make it look like night"),
        lambda image: 0.45 * image,
    ),
    Edit(
        "brighter",
        False,
        ("make it brighter", "turn up the light", "add more light"),
        lambda image: 1 - 0.5 * (1 - image),
    ),
    Edit(
        "invert",
        False,
        ("invert the colors", "make it a negative", "turn it into a photo negative"),
        lambda image: 1 - image,
    ),
    Edit(
        "posterize",
        False,
        ("posterize it", "use only a few colors", "make it a poster"),
        _posterize,
    ),
    Edit(
        "strong_contrast",
        False,
        ("increase the contrast", "give it strong contrast", "make the contrast stronger"),
        _strong_contrast,
    ),
    Edit(
        "low_contrast",
        False,
        ("reduce the contrast", "give it weak contrast", "make it look foggy"),
        lambda image: 0.65 + 0.3 * (image - 0.5),
    ),
    Edit(
        "blur",
        False,
        ("blur the photo", "make it blurry", "put it out of focus"),
        lambda image: _blur(image, 0.1),
    ),
    Edit(
        "sketch",
        False,
        ("turn it into a sketch", "draw it with a pencil", "make it a line drawing"),
        _sketch,
    ),
    Edit(
        "green_tint",
        False,
        ("add a green tint", "tint it green", "make it green"),
        lambda image: _toned(image, (0.0, 0.1, 0.0), (0.6, 1.0, 0.55)),
    ),
    Edit(
        "purple_tint",
        False,
        ("add a purple tint", "tint it purple", "make it purple"),
        lambda image: _toned(image, (0.12, 0.0, 0.15), (0.9, 0.6, 1.0)),
    ),
)

_HARD = (
    Edit(
        "flip_horizontally",
        True,
        ("flip it horizontally", "flip left and right", "show it in a mirror"),
        lambda image: image.flip(-1),
    ),
    Edit(
        "flip_vertically",
        True,
        ("flip it vertically", "flip top and bottom", "show it reflected in water"),
        lambda image: image.flip(-2),
    ),
    Edit(
        "rotate_180",
        True,
        ("rotate it by half a turn", "turn it upside down", "rotate by 180 degrees"),
        lambda image: image.flip((-2, -1)),
    ),
    Edit("zoom_in", True, ("zoom in", "show the center larger", "move closer"), _zoom_in),
    Edit("swap_halves", True, ("swap the halves", "exchange left and right", "swap the two sides"), _swap_halves),
    Edit(
        "mirror_left",
        True,
        ("mirror the left half", "make it symmetric", "copy the left side to the right"),
        _mirror_left,
    ),
)

EDITS: dict[str, Edit] = {edit.name: edit for edit in (*_EASY, *_HARD)}


def _interleaved() -> tuple[Edit, ...]:
    """All edits, so that every stretch of them holds its share of hard ones, to within one."""
    easy, hard, made = iter(_EASY), iter(_HARD), list[Edit]()
    for position in range(len(EDITS)):
        # Hard number k stands in the middle of the k-th of len(_HARD) equal stretches.
        before, after = ((2 * p * len(_HARD) + len(EDITS)) // (2 * len(EDITS)) for p in (position, position + 1))
        made.append(next(hard if after > before else easy))
    return tuple(made)


TURNS: tuple[Edit, ...] = _interleaved()  # The order in which searches and evaluations take the edits.


def edit_for_prompt(prompt: str) -> Edit | None:
    """Return the edit one of whose phrasings equals `prompt`, ignoring case and spacing; None when there is none."""
    words = " ".join(prompt.lower().split())
    return next((edit for edit in EDITS.values() if words in edit.phrasings), None)


def nearest_results(outputs: Tensor, inputs: Tensor) -> list[str | None]:
    """Which edit each output looks most like: the one whose true result is the nearest, of all edits' and the input.

    Args:
        outputs, inputs: (B, 3, H, W) float in [0, 1].

    Returns:
        Names of edits, nearest in mean square, in the order of the batch; None where the unchanged input is as near
        as any.
    """
    results = (inputs, *(edit.apply(inputs) for edit in EDITS.values()))
    errors = torch.stack([(result.double() - outputs.double()).square().flatten(1).mean(1) for result in results])
    return [(None, *EDITS)[position] for position in errors.argmin(0).tolist()]
