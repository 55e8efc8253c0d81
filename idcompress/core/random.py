"""Noise that belongs to the image, not to the batch."""

import torch
from torch import Tensor


def image_generator(seed: int, index: int) -> torch.Generator:
    """The random generator of one image: the same for any batch size, order or device."""
    return torch.Generator("cpu").manual_seed((seed * 1_000_003 + index) % 2**63)


def randn_like(sample: Tensor, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
    """Unit normal noise of `sample`'s shape, dtype and device, drawn on the generator's own device.

    Args:
        sample: (B, ...).
        generator: one for the whole batch, or a list with one per image.

    Raises:
        ValueError: the list's length is not B.
    """
    if isinstance(generator, list):
        if len(generator) != sample.shape[0]:
            raise ValueError(f"got {len(generator)} generators for a batch of {sample.shape[0]}, want one per image")
        return torch.cat([randn_like(one, g) for one, g in zip(torch.split(sample, 1), generator, strict=True)])
    device = sample.device if generator is None else generator.device
    return torch.randn(sample.shape, generator=generator, device=device, dtype=sample.dtype).to(sample.device)
