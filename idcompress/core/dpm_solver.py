"""DPM-Solver++ (2M) over any list of timesteps: the same call as `ddim_sample`, second order where it can be."""

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from .ddim import predict
from .noise_schedule import check_timesteps


def dpm_solver_sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    sample: Float[Tensor, "b ..."],
    timesteps: Iterable[int] | Tensor,
    alphas_cumprod: Float[Tensor, " num_train_timesteps"],
    *,
    prediction_type: str = "epsilon",
) -> Float[Tensor, "b ..."]:
    """Sample with DPM-Solver++ 2M; arguments and result as `ddim_sample` at eta 0.

    A repeated timestep has a step of length zero, on which the multistep formula divides by zero; since such a step
    changes nothing, repeats are passed over before the network is called.

    Source: Lu et al., arXiv 2211.01095, algorithm 2; first step and last step (to x_0) are of first order.
    """
    steps = list(dict.fromkeys(check_timesteps(timesteps, len(alphas_cumprod))))
    levels = [float(alphas_cumprod[t]) for t in steps]
    lambdas = [0.5 * math.log(a / (1 - a)) for a in levels]  # half log signal-to-noise ratio
    previous: Tensor | None = None
    for i, (timestep, level) in enumerate(zip(steps, levels, strict=True)):
        model_output = denoise(sample, torch.tensor(timestep, device=sample.device))
        denoised = predict(model_output, sample, level, prediction_type).pred_original_sample
        if i == len(steps) - 1:
            return denoised
        h = lambdas[i + 1] - lambdas[i]
        extrapolated = denoised
        if previous is not None:
            ratio = (lambdas[i] - lambdas[i - 1]) / h
            extrapolated = denoised + (denoised - previous) / (2 * ratio)
        noise_ratio = ((1 - levels[i + 1]) / (1 - level)) ** 0.5
        sample = noise_ratio * sample - levels[i + 1] ** 0.5 * math.expm1(-h) * extrapolated
        previous = denoised
    raise AssertionError("check_timesteps refuses an empty list")
