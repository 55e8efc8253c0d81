"""DDIM over any list of timesteps: one step between two noise levels, the sampling loop, and noise that lists share.

Step and loop follow Song et al., "Denoising Diffusion Implicit Models" (arXiv 2010.02502), equations 12 and 16, with
the ending of the released compression code: the last listed timestep returns the predicted x_0 itself.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise, repeat
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .noise_schedule import check_timesteps
from .random import randn_like

Generators = torch.Generator | list[torch.Generator] | None


class Prediction(NamedTuple):
    """What a model output says about a sample: its clean end and its noise, both of the sample's shape."""

    pred_original_sample: Tensor
    pred_epsilon: Tensor


def predict(
    model_output: Float[Tensor, "b ..."], sample: Float[Tensor, "b ..."], alpha_cumprod: float, prediction_type: str
) -> Prediction:
    """Turn a model output of any prediction type into (x_0, epsilon).

    Args:
        model_output, sample: (B, ...) at the noise level `alpha_cumprod`.
        prediction_type: "epsilon", "v_prediction" or "sample", as in diffusers.

    Raises:
        ValueError: another prediction type, or shapes that differ.

    Source: x_t = sqrt(a) x_0 + sqrt(1 - a) epsilon; v = sqrt(a) epsilon - sqrt(1 - a) x_0 (arXiv 2202.00512, app. D).
    """
    if model_output.shape != sample.shape:
        raise ValueError(f"model_output {tuple(model_output.shape)} and sample {tuple(sample.shape)} differ in shape")
    signal, noise = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    if prediction_type == "epsilon":
        return Prediction((sample - noise * model_output) / signal, model_output)
    if prediction_type == "v_prediction":
        return Prediction(signal * sample - noise * model_output, signal * model_output + noise * sample)
    if prediction_type == "sample":
        return Prediction(model_output, (sample - signal * model_output) / noise)
    raise ValueError(f"prediction_type must be epsilon, v_prediction or sample, got {prediction_type!r}")


def ddim_step(
    prediction: Prediction,
    alpha_cumprod: float,
    next_alpha_cumprod: float | None,
    *,
    eta: float | int = 0.0,
    generator: Generators = None,
    variance_noise: Tensor | None = None,
) -> Tensor:
    """Move from the noise level `alpha_cumprod` to `next_alpha_cumprod`.

    Args:
        prediction: x_0 and epsilon at the present level.
        next_alpha_cumprod: the level at the next *listed* timestep; None after the last one, which returns x_0.
        eta: 0 deterministic DDIM .. 1 DDPM-like noise.
        variance_noise: unit noise to use in place of a draw from `generator`.

    Source: arXiv 2010.02502, eq. 12 and 16.
    """
    if next_alpha_cumprod is None:
        return prediction.pred_original_sample
    variance = (1 - next_alpha_cumprod) / (1 - alpha_cumprod) * (1 - alpha_cumprod / next_alpha_cumprod)
    sigma = eta * max(variance, 0.0) ** 0.5
    direction: Tensor = max(1 - next_alpha_cumprod - sigma**2, 0.0) ** 0.5 * prediction.pred_epsilon
    prev_sample: Tensor = next_alpha_cumprod**0.5 * prediction.pred_original_sample + direction
    if sigma > 0:
        if variance_noise is None:
            variance_noise = randn_like(prev_sample, generator)
        prev_sample = prev_sample + sigma * variance_noise
    return prev_sample


def ddim_sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    sample: Float[Tensor, "b ..."],
    timesteps: Iterable[int] | Tensor,
    alphas_cumprod: Float[Tensor, " num_train_timesteps"],
    *,
    eta: float | int = 0.0,
    generator: Generators = None,
    step_noise: Iterable[Tensor] | None = None,
    prediction_type: str = "epsilon",
) -> Float[Tensor, "b ..."]:
    """Sample over an arbitrary, never increasing list of timesteps.

    Args:
        denoise: (sample (B, ...), timestep, a 0-d int64 tensor on the sample's device) -> model_output (B, ...).
        sample: x at the first listed timestep, (B, ...); unit normal noise for a generation, whatever that timestep is.
        timesteps: indices into `alphas_cumprod`; the step after each goes to the next *position* in the list, never to
            `timestep - stride`, so repeats are legal.
        alphas_cumprod: (T,), float32 or float64.
        eta: 0 for the deterministic sampler, 1 for the ancestral one (DDPM's, over the listed timesteps).
        generator: noise source for eta > 0; a list gives one per image.
        step_noise: unit noise (B, ...) of every step but the last, in place of draws from `generator`: `path_noise`.
        prediction_type: "epsilon", "v_prediction" or "sample".

    Returns:
        The x_0 predicted at the last listed timestep, even if that is not 0; shape and dtype of `sample`.

    Raises:
        ValueError: the list is empty, increases or leaves [0, T - 1].

    Source: arXiv 2010.02502, eq. 12; list handling as in the released compression code.
    """
    *_, last = ddim_trajectory(
        denoise,
        sample,
        timesteps,
        alphas_cumprod,
        eta=eta,
        generator=generator,
        step_noise=step_noise,
        prediction_type=prediction_type,
    )
    return last.pred_original_sample


def ddim_trajectory(
    denoise: Callable[[Tensor, Tensor], Tensor],
    sample: Float[Tensor, "b ..."],
    timesteps: Iterable[int] | Tensor,
    alphas_cumprod: Float[Tensor, " num_train_timesteps"],
    *,
    eta: float | int = 0.0,
    generator: Generators = None,
    step_noise: Iterable[Tensor] | None = None,
    prediction_type: str = "epsilon",
) -> Iterator[Prediction]:
    """The loop of `ddim_sample`, yielding each step's prediction so that a caller can show, save or stop."""
    steps = check_timesteps(timesteps, len(alphas_cumprod))
    levels = [float(alphas_cumprod[t]) for t in steps]
    noises = chain(repeat(None, len(steps) - 1) if step_noise is None else step_noise, [None])
    for timestep, level, next_level, noise in zip(steps, levels, [*levels[1:], None], noises, strict=True):
        # 1. what the network says about the present sample
        model_output = denoise(sample, torch.tensor(timestep, device=sample.device))
        prediction = predict(model_output, sample, level, prediction_type)
        yield prediction
        # 2. on to the next listed level
        sample = ddim_step(prediction, level, next_level, eta=eta, generator=generator, variance_noise=noise)


def path_noise(
    sample: Float[Tensor, "b ..."],
    timesteps: Iterable[int] | Tensor,
    alphas_cumprod: Float[Tensor, " num_train_timesteps"],
    generators: list[torch.Generator],
) -> Iterator[Tensor]:
    """Step noise of ancestral sampling such that lists of any length follow the same random path.

    With a constant predicted x_0 the quantity (x_t / sqrt(a) - x_0) a / (1 - a) is, at eta 1, a Brownian motion whose
    time is the signal-to-noise ratio a / (1 - a). The path is drawn once per training timestep, whatever the list, and
    a step takes the path's increment between its two timesteps: lists then differ by their steps, not by their luck.

    Args:
        sample: (B, ...), for shape, dtype and device.
        generators: one per image; they are left as they are, so the path can be walked again.

    Yields:
        (B, ...), unit normal, for every step but the last; zeros where a timestep repeats.
    """
    ratios = [a / (1 - a) for a in alphas_cumprod.tolist()]
    draws, cpu_sample = [generator.clone_state() for generator in generators], sample.cpu()
    steps = check_timesteps(timesteps, len(ratios))
    for position, (timestep, next_timestep) in enumerate(pairwise([len(ratios) - 1, *steps])):
        increment = torch.zeros_like(cpu_sample)
        for t in range(timestep, next_timestep, -1):
            increment += (ratios[t - 1] - ratios[t]) ** 0.5 * randn_like(cpu_sample, draws)
        if position > 0:  # before that the path only comes to where the list begins
            yield (increment / ((ratios[next_timestep] - ratios[timestep]) or 1.0) ** 0.5).to(sample.device)
