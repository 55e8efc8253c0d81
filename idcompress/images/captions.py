"""Captions made of measurable facts, so that whether a generated image obeys its prompt can be counted.

Each fact is a word chosen by thresholds on a statistic of the image; the caption is one sentence that names all five.
Thresholds are near the terciles of photographs, so that every word is used about equally often.
"""

from __future__ import annotations

import torch
from torch import Tensor

COLOURS = ("gray", "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
BRIGHTNESS = ("dark", "medium", "bright")
WARMTH = ("cold", "neutral", "warm")
CONTRAST = ("weak", "normal", "strong")
SHARPNESS = ("smooth", "soft", "fine")

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_HUE_EDGES = (15.0, 45.0, 70.0, 160.0, 200.0, 255.0, 290.0, 345.0)  # degrees: red to 15, orange to 45, … pink to 345
_HUE_NAMES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "red")
_GRAY_SATURATION = 0.08  # mean (max - min) over channels below which a picture counts as gray


def _word(value: float, low: float, high: float, words: tuple[str, str, str]) -> str:
    return words[0] if value < low else words[1] if value < high else words[2]


def _dominant_colour(image: Tensor) -> str:
    """Name of the hue that carries most saturation; gray when there is little."""
    red, green, blue = image
    largest, smallest = image.amax(0), image.amin(0)
    chroma = largest - smallest
    if float(chroma.mean()) < _GRAY_SATURATION:
        return "gray"
    safe = chroma.clamp_min(1e-6)
    hue = torch.where(
        largest == red,
        ((green - blue) / safe) % 6,
        torch.where(largest == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    bins = torch.bucketize(60 * hue, torch.tensor(_HUE_EDGES, dtype=hue.dtype, device=hue.device))
    weights = dict.fromkeys(_HUE_NAMES, 0.0)
    for index, name in enumerate(_HUE_NAMES):
        weights[name] += float(chroma[bins == index].sum())
    return max(weights, key=lambda name: weights[name])


def caption_facts(image: Tensor) -> dict[str, str]:
    """Measure the five facts of an image.

    Args:
        image: (3, H, W) float in [0, 1].

    Returns:
        fact to word: `brightness` (mean luma), `warmth` (mean red minus blue), `colour` (dominant hue), `contrast`
        (standard deviation of luma), `sharpness` (mean absolute difference of neighbouring luma).

    Raises:
        ValueError: the image is not (3, H, W).
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image must be (3, H, W) in [0, 1], got shape {tuple(image.shape)}")
    luma = (image * torch.tensor(_LUMA, dtype=image.dtype, device=image.device).view(3, 1, 1)).sum(0)
    gradient = 0.5 * (luma.diff(dim=0).abs().mean() + luma.diff(dim=1).abs().mean())
    return {
        "brightness": _word(float(luma.mean()), 0.33, 0.6, BRIGHTNESS),
        "warmth": _word(float((image[0] - image[2]).mean()), -0.03, 0.04, WARMTH),
        "colour": _dominant_colour(image),
        "contrast": _word(float(luma.std()), 0.09, 0.18, CONTRAST),
        "sharpness": _word(float(gradient), 0.012, 0.028, SHARPNESS),
    }


def caption(image: Tensor) -> str:
    """One sentence with the five facts of an image, (3, H, W) float in [0, 1]."""
    facts = caption_facts(image)
    return (
        f"a {facts['brightness']} {facts['warmth']} photo mostly {facts['colour']} "
        f"with {facts['contrast']} contrast and {facts['sharpness']} detail"
    )


def facts_in_prompt(prompt: str) -> dict[str, str]:
    """Read the facts that a prompt asks for; facts it does not name are absent.

    Args:
        prompt: a caption or any sentence that uses its words (case does not matter).

    Returns:
        fact to word, comparable with `caption_facts` of an output.
    """
    words = {word.strip(".,;:!?") for word in prompt.lower().split()}
    vocabulary = {
        "brightness": BRIGHTNESS,
        "warmth": WARMTH,
        "colour": COLOURS,
        "contrast": CONTRAST,
        "sharpness": SHARPNESS,
    }
    return {fact: word for fact, choices in vocabulary.items() for word in choices if word in words}
