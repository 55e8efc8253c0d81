"""DDIM between any two levels, and noise that lists of timesteps share.

Source: Song et al., "Denoising Diffusion Implicit Models" (arXiv 2010.02502), equations 12 and 16.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .plan import Plan, Step
from .process import Level, Prediction, Process, VariancePreserving, check_timesteps
from .random import randn_like
from .sample import Denoise, Moment, Noise, trajectory

Generators = torch.Generator | list[torch.Generator] | None


def ddim_step(
    prediction: Prediction,
    level: Level,
    next_level: Level,
    *,
    eta: float | int = 0.0,
    generator: Generators = None,
    variance_noise: Tensor | None = None,
) -> Tensor:
    """Move from one level to another. On a rectified flow, eta 0 is a step of Euler's method.

    Args:
        prediction: x_0 and epsilon at `level`.
        next_level: where to go; at CLEAN this is the predicted x_0 itself.
        eta: 0 deterministic DDIM .. 1 DDPM-like noise.
        variance_noise: unit noise to use in place of a draw from `generator`.

    Source: arXiv 2010.02502, eq. 12 and 16, with the variance written for any pair of levels: what is left of the next
    level's noise when the present sample and x_0 are known.
    """
    if next_level.noise == 0:
        return prediction.pred_original_sample
    sigma = 0.0
    if eta > 0:
        # Where there is no signal to come, the sample is all noise already, and all of it is kept.
        kept = (level.signal * next_level.noise) / (next_level.signal * level.noise) if next_level.signal else 1.0
        sigma = eta * next_level.noise * max(1 - kept**2, 0.0) ** 0.5
    noise = max(next_level.noise**2 - sigma**2, 0.0) ** 0.5 if sigma > 0 else next_level.noise
    prev_sample: Tensor = next_level.signal * prediction.pred_original_sample + noise * prediction.pred_epsilon
    if sigma > 0:
        if variance_noise is None:
            variance_noise = randn_like(prev_sample, generator)
        prev_sample = prev_sample + sigma * variance_noise
    return prev_sample


@dataclass(frozen=True)
class Ddim:
    """DDIM as a sampler of the loop.

    Attributes:
        eta: 0 deterministic; 1 ancestral, DDPM's over the listed timesteps.
    """

    eta: float | int = 0.0
    ORDER = 1
    SKIPS_REPEATS = False

    @property
    def STOCHASTIC(self) -> bool:  # noqa: N802
        return self.eta > 0

    def advance(
        self,
        history: Sequence[Moment],
        next_level: Level,
        *,
        coefficients: Sequence[float | int] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        now = history[-1]
        return ddim_step(now.prediction, now.level, next_level, eta=self.eta, variance_noise=noise)


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
    """`ddim_sample` step by step: each one's prediction, so that a caller can show, save or stop."""
    process = VariancePreserving(alphas_cumprod, prediction_type)
    plan = Plan.over(check_timesteps(timesteps, process.num_train_timesteps))
    noise: Noise = DrawnNoise(generator) if step_noise is None else GivenNoise(step_noise)
    for visit in trajectory(without_cache(denoise), sample, plan, process, Ddim(eta), noise=noise):
        yield visit.moment.prediction


def without_cache(denoise: Callable[[Tensor, Tensor], Tensor]) -> Denoise:
    """A function of (sample, timestep) as the loop wants it: it computes everything at every step and keeps nothing."""

    def call(sample: Tensor, step: Step, cache: Any) -> tuple[Tensor, Any]:
        return denoise(sample, torch.tensor(step.timestep, device=sample.device)), cache

    return call


@dataclass(frozen=True)
class DrawnNoise:
    """Step noise drawn from generators when it is needed. Drawing moves them on, so it serves one plan at a time."""

    generator: Generators = None

    def begin(self, sample: Tensor, timestep: float | int) -> Tensor:
        return sample

    def between(self, state: Tensor, timestep: float | int, next_timestep: float | int) -> tuple[Tensor, Tensor]:
        still = timestep == next_timestep  # a repeat has no noise, and draws none
        return torch.zeros_like(state) if still else randn_like(state, self.generator), state


@dataclass(frozen=True)
class GivenNoise:
    """Step noise that a caller hands over, move by move; for one plan."""

    steps: Iterable[Tensor]

    def begin(self, sample: Tensor, timestep: float | int) -> Iterator[Tensor]:
        return iter(self.steps)

    def between(
        self, state: Iterator[Tensor], timestep: float | int, next_timestep: float | int
    ) -> tuple[Tensor, Iterator[Tensor]]:
        return next(state), state


@dataclass(frozen=True)
class PathNoise:
    """Step noise of ancestral sampling such that lists of any length follow the same random path.

    With a constant predicted x_0 the quantity (x_t / signal - x_0) (signal / noise)^2 is, at eta 1, a Brownian motion
    whose time is the signal-to-noise ratio (signal / noise)^2. The path is drawn once per training timestep, whatever
    the list, and a step takes the path's increment between its two timesteps: lists then differ by their steps, not by
    their luck.

    Attributes:
        process: whose timesteps are whole numbers.
        generators: one per image; they are left as they are, so the path can be walked again.
    """

    process: Process
    generators: list[torch.Generator]

    def begin(self, sample: Tensor, timestep: float | int) -> tuple[Tensor, list[torch.Generator]]:
        state = (sample, [generator.clone_state() for generator in self.generators])
        return self.between(state, self.process.max_timestep, timestep)[1]

    def between(
        self, state: tuple[Tensor, list[torch.Generator]], timestep: float | int, next_timestep: float | int
    ) -> tuple[Tensor, tuple[Tensor, list[torch.Generator]]]:
        sample, generators = state[0], [generator.clone_state() for generator in state[1]]
        on_cpu = sample.cpu()
        increment = torch.zeros_like(on_cpu)
        for t in range(int(timestep), int(next_timestep), -1):
            increment += (self._ratio(t - 1) - self._ratio(t)) ** 0.5 * randn_like(on_cpu, generators)
        spread = (self._ratio(int(next_timestep)) - self._ratio(int(timestep))) ** 0.5 or 1.0
        return (increment / spread).to(sample.device), (sample, generators)

    def over(self, sample: Tensor, timesteps: Sequence[float | int]) -> Iterator[Tensor]:
        """The increments over a list: unit noise (B, ...) of every step but the last, zero at repeats."""
        state = self.begin(sample, timesteps[0])
        for timestep, next_timestep in pairwise(timesteps):
            unit, state = self.between(state, timestep, next_timestep)
            yield unit

    def _ratio(self, timestep: int) -> float:
        """Signal-to-noise ratio, the path's own time."""
        signal, noise = self.process.level(timestep)
        return signal**2 / noise**2


def path_noise(
    sample: Float[Tensor, "b ..."],
    timesteps: Iterable[int] | Tensor,
    alphas_cumprod: Float[Tensor, " num_train_timesteps"],
    generators: list[torch.Generator],
) -> Iterator[Tensor]:
    """`PathNoise.over` for a noise schedule's products, (T,).

    Args:
        sample: (B, ...), for shape, dtype and device.
        generators: one per image; they are left as they are.
    """
    noise = PathNoise(VariancePreserving(alphas_cumprod), generators)
    return noise.over(sample, check_timesteps(timesteps, len(alphas_cumprod)))
