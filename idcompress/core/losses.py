"""What a denoising network is trained towards: the forward process, its target, and distillation from a full model."""

from collections.abc import Mapping

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor


def add_noise(
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    timesteps: Int[Tensor, " b"],
    alphas_cumprod: Float[Tensor, " t"],
) -> Float[Tensor, "b c h w"]:
    """The sample at each image's own timestep.

    Source: Ho et al., DDPM, arXiv 2006.11239, eq. 4.
    """
    signal, sigma = _levels(timesteps, alphas_cumprod)
    return signal * latents + sigma * noise


def denoising_target(
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    timesteps: Int[Tensor, " b"],
    alphas_cumprod: Float[Tensor, " t"],
    prediction_type: str,
) -> Float[Tensor, "b c h w"]:
    """What the network should put out.

    Args:
        prediction_type: "epsilon", "v_prediction" or "sample", as diffusers' schedulers name them.

    Raises:
        ValueError: another prediction type.

    Source: Salimans and Ho, arXiv 2202.00512, appendix D, for v = alpha * noise - sigma * latents.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    if prediction_type == "v_prediction":
        signal, sigma = _levels(timesteps, alphas_cumprod)
        return signal * noise - sigma * latents
    raise ValueError(f"prediction_type must be epsilon, v_prediction or sample, got {prediction_type!r}")


def feature_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Sum over features of the mean squared difference, in float32.

    Args:
        student, teacher: features by the name of their block, the same names and shapes in both.

    Source: Kim et al., BK-SDM, arXiv 2305.15798, eq. 4 (the released code sums over blocks, without weights).
    """
    assert student.keys() == teacher.keys()
    terms = [F.mse_loss(student[name].float(), teacher[name].float()) for name in student]
    return sum(terms[1:], start=terms[0])


def _levels(timesteps: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """Amplitudes of signal and noise, each (B, 1, 1, 1)."""
    alpha = alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1)
    return alpha.sqrt(), (1 - alpha).sqrt()
