"""Classifier-free guidance: how the branches of one network call become one model output."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor


def num_branches(guidance: Mapping[str, float]) -> int:
    """Samples of a network call per image: with text and image, with the image alone, with neither.

    Args:
        guidance: scales by their diffusers names; one of 1 makes a branch superfluous, and it is not computed.
    """
    if guidance.get("image_guidance_scale", 1) != 1:
        return 3
    return 2 if guidance.get("guidance_scale", 1) != 1 else 1


def classifier_free_guidance(
    text: Float[Tensor, "b ..."], null: Float[Tensor, "b ..."], guidance_scale: float
) -> Float[Tensor, "b ..."]:
    """null + s (text - null). Source: Ho and Salimans, arXiv 2207.12598, eq. 6 (there w = s - 1)."""
    return null + guidance_scale * (text - null)


def dual_guidance(
    text: Float[Tensor, "b ..."],
    image: Float[Tensor, "b ..."],
    null: Float[Tensor, "b ..."],
    guidance_scale: float,
    image_guidance_scale: float,
) -> Float[Tensor, "b ..."]:
    """Two guidances, for the instruction and for the input image.

    Args:
        text: output conditioned on text and image; image: on the image alone; null: on neither.

    Source: InstructPix2Pix, arXiv 2211.09800, eq. 3.
    """
    return null + guidance_scale * (text - image) + image_guidance_scale * (image - null)
