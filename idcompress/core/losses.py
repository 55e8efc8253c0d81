"""What a denoising network is trained towards: the forward process, its target, and distillation from a full model."""

from collections.abc import Mapping

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from .process import Process


def add_noise(
    latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], timesteps: Int[Tensor, " b"], process: Process
) -> Float[Tensor, "b c h w"]:
    """The sample at each image's own timestep.

    Source: Ho et al., DDPM, arXiv 2006.11239, eq. 4.
    """
    signal, sigma = _levels(timesteps, process)
    return signal * latents + sigma * noise


def denoising_target(
    latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], timesteps: Int[Tensor, " b"], process: Process
) -> Float[Tensor, "b c h w"]:
    """What the network of a process should put out, by the process's prediction type.

    Source: Salimans and Ho, arXiv 2202.00512, appendix D, for v = signal * noise - sigma * latents; Liu et al., arXiv
    2209.03003, eq. 1, for flow = noise - latents.
    """
    if process.prediction_type == "epsilon":
        return noise
    if process.prediction_type == "sample":
        return latents
    if process.prediction_type == "flow":
        return noise - latents
    signal, sigma = _levels(timesteps, process)
    return signal * noise - sigma * latents


def feature_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Sum over features of the mean squared difference, in float32.

    Args:
        student, teacher: features by the name of their block, the same names and shapes in both.

    Source: Kim et al., BK-SDM, arXiv 2305.15798, eq. 4 (the released code sums over blocks, without weights).
    """
    assert student.keys() == teacher.keys()
    terms = [F.mse_loss(student[name].float(), teacher[name].float()) for name in student]
    return sum(terms[1:], start=terms[0])


def _levels(timesteps: Tensor, process: Process) -> tuple[Tensor, Tensor]:
    """Amplitudes of signal and noise, each (B, 1, 1, 1)."""
    signal, noise = process.levels(timesteps)
    return signal.view(-1, 1, 1, 1), noise.view(-1, 1, 1, 1)
