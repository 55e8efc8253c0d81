"""Noise schedules: betas to the cumulative products that every sampler reads, and the one check of a timestep list."""

import itertools
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def scaled_linear_alphas_cumprod(
    num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Float[Tensor, " num_train_timesteps"]:
    """Stable Diffusion's schedule: betas linear in their square root.

    Returns:
        alphas_cumprod, (num_train_timesteps,), float32, falling from about 1 to about 0.0047; multiplied up in float64
        and then rounded, as the original code does.

    Source: Rombach et al., latent diffusion; diffusers calls it `beta_schedule="scaled_linear"`.
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float()


def check_timesteps(timesteps: Iterable[int] | Tensor, num_train_timesteps: int = 1000) -> list[int]:
    """Check a list of timesteps and return it as plain integers.

    Args:
        timesteps: training-timestep indices, never increasing; repeats are legal (at eta 0 they change nothing).
        num_train_timesteps: T; every entry must lie in [0, T - 1].

    Raises:
        ValueError: the list is empty, increases somewhere or leaves the range.
    """
    values: Sequence[int] = [int(t) for t in timesteps]
    if not values:
        raise ValueError("timesteps must hold at least one entry, got an empty list")
    for position, (before, after) in enumerate(itertools.pairwise(values), start=1):
        if after > before:
            raise ValueError(f"timesteps must not increase, got {before} then {after} at position {position}")
    if values[0] >= num_train_timesteps or values[-1] < 0:
        raise ValueError(f"timesteps must lie in [0, {num_train_timesteps - 1}], got {values[0]} down to {values[-1]}")
    return list(values)


def check_num_inference_steps(num_inference_steps: int, num_train_timesteps: int = 1000) -> None:
    """Raise ValueError unless 1 <= num_inference_steps <= num_train_timesteps."""
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(f"num_inference_steps must be between 1 and {num_train_timesteps}, got {num_inference_steps}")
