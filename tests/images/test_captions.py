"""Captions name what is measured, and can be read back."""

import pytest
import torch

from idcompress.images.captions import caption, caption_facts, facts_in_prompt


def flat(red: float, green: float, blue: float) -> torch.Tensor:
    return torch.tensor([red, green, blue]).view(3, 1, 1).expand(3, 32, 32)


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((0.5, 0.5, 0.5), "gray"),
        ((0.8, 0.1, 0.1), "red"),
        ((0.9, 0.5, 0.1), "orange"),
        ((0.8, 0.8, 0.1), "yellow"),
        ((0.1, 0.7, 0.1), "green"),
        ((0.1, 0.7, 0.7), "cyan"),
        ((0.1, 0.2, 0.8), "blue"),
        ((0.5, 0.1, 0.8), "purple"),
        ((0.9, 0.1, 0.6), "pink"),
    ],
)
def test_dominant_colour(colour: tuple[float, float, float], name: str) -> None:
    assert caption_facts(flat(*colour))["colour"] == name


def test_brightness_and_warmth_follow_the_pixels() -> None:
    assert caption_facts(flat(0.1, 0.1, 0.1))["brightness"] == "dark"
    assert caption_facts(flat(0.9, 0.9, 0.9))["brightness"] == "bright"
    assert caption_facts(flat(0.6, 0.5, 0.4))["warmth"] == "warm"
    assert caption_facts(flat(0.4, 0.5, 0.6))["warmth"] == "cold"


def test_contrast_and_sharpness_follow_the_pixels() -> None:
    board = (torch.arange(32).view(-1, 1) + torch.arange(32)).remainder(2).float().expand(3, 32, 32)
    facts = caption_facts(board)
    assert (facts["contrast"], facts["sharpness"]) == ("strong", "fine")
    ramp = torch.linspace(0, 1, 256).view(1, 1, -1).expand(3, 256, 256)
    facts = caption_facts(ramp)
    assert (facts["contrast"], facts["sharpness"]) == ("strong", "smooth")


def test_facts_are_read_back_from_the_caption() -> None:
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert facts_in_prompt(caption(image)) == caption_facts(image)
    assert facts_in_prompt("A dark, cold night") == {"brightness": "dark", "warmth": "cold"}
    assert facts_in_prompt("") == {}


def test_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, H, W\)"):
        caption_facts(torch.rand(1, 3, 8, 8))
