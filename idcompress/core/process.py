"""Diffusion processes: what a timestep means, as an amplitude of signal and one of noise, and what a network predicts.

Every sample is x = signal * x_0 + noise * epsilon. Samplers, searches and losses know pairs (signal, noise) and nothing
of the schedule behind them, so that a variance-preserving process and a rectified flow are handled by the same code.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")


class Level(NamedTuple):
    """How much of a sample is signal and how much is noise: x = signal * x_0 + noise * epsilon."""

    signal: float | int
    noise: float | int


CLEAN = Level(1.0, 0.0)  # where every run ends: x is x_0 itself


def half_log_snr(level: Level) -> float:
    """Half the log of the signal-to-noise ratio, log(signal / noise); infinite where there is one of them only."""
    if level.noise == 0:
        return math.inf
    return math.log(level.signal / level.noise) if level.signal > 0 else -math.inf


class Prediction(NamedTuple):
    """What a model output says about a sample: its clean end and its noise, both of the sample's shape."""

    pred_original_sample: Tensor
    pred_epsilon: Tensor


def predict(
    model_output: Float[Tensor, "b ..."], sample: Float[Tensor, "b ..."], level: Level, prediction_type: str
) -> Prediction:
    """Turn a model output of any prediction type into (x_0, epsilon).

    Args:
        model_output: (B, ...), what the network says about `sample`.
        sample: (B, ...), at the level.
        prediction_type: "epsilon", "v_prediction", "sample" or "flow", as diffusers' schedulers name them.

    Raises:
        ValueError: another prediction type, or shapes that differ.

    Source: v = signal * epsilon - noise * x_0 (Salimans and Ho, arXiv 2202.00512, appendix D, where signal^2 +
    noise^2 = 1); flow = epsilon - x_0 (Liu et al., arXiv 2209.03003, eq. 1, where signal + noise = 1).
    """
    if model_output.shape != sample.shape:
        raise ValueError(f"model_output {tuple(model_output.shape)} and sample {tuple(sample.shape)} differ in shape")
    signal, noise = level
    if prediction_type == "epsilon":
        return Prediction((sample - noise * model_output) / signal, model_output)
    if prediction_type == "v_prediction":
        return Prediction(signal * sample - noise * model_output, signal * model_output + noise * sample)
    if prediction_type == "sample":
        return Prediction(model_output, (sample - signal * model_output) / noise)
    if prediction_type == "flow":
        return Prediction(sample - noise * model_output, sample + signal * model_output)
    raise ValueError(f"prediction_type must be {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")


@runtime_checkable
class Process(Protocol):
    """What a model was trained to undo.

    Attributes:
        num_train_timesteps: T.
        max_timestep: the noisiest timestep, where sampling from pure noise begins; all lie in [0, max_timestep].
        prediction_type: what the network puts out, see `predict`.
        real_timesteps: whether timesteps between whole numbers have a level.
    """

    @property
    def num_train_timesteps(self) -> int: ...

    @property
    def prediction_type(self) -> str: ...

    @property
    def max_timestep(self) -> int: ...

    @property
    def real_timesteps(self) -> bool: ...

    def level(self, timestep: float | int) -> Level:
        """Signal and noise at a timestep."""
        ...

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The same of many timesteps (B,), as tensors (B,) of the process's own precision on the timesteps' device."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The process as plain values: two processes that sample alike have equal ones."""
        ...


class VariancePreserving:
    """Noise that takes the place of the signal: signal^2 + noise^2 = 1, by the products of a noise schedule.

    Args:
        alphas_cumprod: (T,), float32 or float64, falling; signal^2 at every training timestep.
        prediction_type: "epsilon", "v_prediction" or "sample".

    Source: Ho et al., DDPM, arXiv 2006.11239, eq. 4; Stable Diffusion's is `scaled_linear_alphas_cumprod`.
    """

    real_timesteps = False

    def __init__(self, alphas_cumprod: Float[Tensor, " t"], prediction_type: str = "epsilon") -> None:
        if prediction_type not in PREDICTION_TYPES[:3]:
            raise ValueError(f"prediction_type must be epsilon, v_prediction or sample, got {prediction_type!r}")
        self.alphas_cumprod = alphas_cumprod.detach().cpu()
        self.prediction_type = prediction_type
        self._alphas: list[float | int] = self.alphas_cumprod.tolist()

    @property
    def num_train_timesteps(self) -> int:
        return len(self._alphas)

    @property
    def max_timestep(self) -> int:
        return self.num_train_timesteps - 1

    def level(self, timestep: float | int) -> Level:
        alpha = self._alphas[_whole(timestep)]
        return Level(alpha**0.5, (1 - alpha) ** 0.5)

    def levels(self, timesteps: Int[Tensor, " b"]) -> tuple[Tensor, Tensor]:
        alphas = self.alphas_cumprod.to(timesteps.device)[timesteps]
        return alphas.sqrt(), (1 - alphas).sqrt()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": "variance_preserving",
            "prediction_type": self.prediction_type,
            "alphas_cumprod": self._alphas,
        }


class RectifiedFlow:
    """Straight lines from noise to data: signal + noise = 1, and timestep t stands for the noise t / T.

    That is what diffusers hands to the networks of flow-matching pipelines; a scheduler's shift moves the list of
    timesteps, not what a timestep means.

    Args:
        num_train_timesteps: T; timesteps are real numbers in [0, T].
        prediction_type: "flow", or "sample" for networks that put out x_0; not "epsilon", which says nothing of x_0
            where a flow begins.

    Source: Liu et al., Flow Straight and Fast, arXiv 2209.03003, eq. 1.
    """

    real_timesteps = True

    def __init__(self, num_train_timesteps: int = 1000, prediction_type: str = "flow") -> None:
        if prediction_type not in ("flow", "sample"):
            raise ValueError(f"prediction_type must be flow or sample, got {prediction_type!r}")
        self.num_train_timesteps, self.prediction_type = num_train_timesteps, prediction_type

    @property
    def max_timestep(self) -> int:
        return self.num_train_timesteps

    def level(self, timestep: float | int) -> Level:
        noise = timestep / self.num_train_timesteps
        return Level(1 - noise, noise)

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        noise = timesteps.float() / self.num_train_timesteps
        return 1 - noise, noise

    def to_json(self) -> dict[str, Any]:
        return {
            "name": "rectified_flow",
            "prediction_type": self.prediction_type,
            "num_train_timesteps": self.num_train_timesteps,
        }


def scaled_linear_alphas_cumprod(
    num_train_timesteps: int = 1000, beta_start: float | int = 0.00085, beta_end: float | int = 0.012
) -> Float[Tensor, " num_train_timesteps"]:
    """Stable Diffusion's schedule: betas linear in their square root.

    Returns:
        alphas_cumprod, (num_train_timesteps,), float32, falling from about 1 to about 0.0047; multiplied up in float64
        and then rounded, as the original code does.

    Source: Rombach et al., latent diffusion; diffusers calls it `beta_schedule="scaled_linear"`.
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float()


def check_timesteps(timesteps: Iterable[float | int] | Tensor, num_train_timesteps: int = 1000) -> list[int]:
    """Check a list of whole timesteps and return it as plain integers.

    Args:
        timesteps: training-timestep indices, never increasing; repeats are legal (at eta 0 they change nothing).
        num_train_timesteps: T; every entry must lie in [0, T - 1].

    Raises:
        ValueError: the list is empty, increases somewhere, leaves the range, or holds a fraction.
    """
    values = [_whole(float(t)) for t in timesteps]
    _check_order(values)
    if values[0] >= num_train_timesteps or values[-1] < 0:
        raise ValueError(f"timesteps must lie in [0, {num_train_timesteps - 1}], got {values[0]} down to {values[-1]}")
    return values


def check_for_process(timesteps: Sequence[float | int], process: Process) -> list[float | int]:
    """The same for a process, some of which know timesteps between whole numbers."""
    if not process.real_timesteps:
        return list[float | int](check_timesteps(timesteps, process.num_train_timesteps))
    values = [float(t) for t in timesteps]
    _check_order(values)
    if not (values[0] <= process.max_timestep and values[-1] >= 0):
        raise ValueError(f"timesteps must lie in [0, {process.max_timestep}], got {values[0]} down to {values[-1]}")
    return values


def timesteps_at(process: Process, half_log_snrs: Iterable[float]) -> list[float | int]:
    """The timesteps whose levels are nearest to given ones, which are half log signal-to-noise ratios in any order."""
    if not process.real_timesteps:
        known = [half_log_snr(process.level(t)) for t in range(process.num_train_timesteps)]  # falls as t grows
        return [_nearest(known, value) for value in half_log_snrs]
    return [_real_timestep_at(process, value) for value in half_log_snrs]


def _nearest(known: list[float], value: float) -> int:
    return min(range(len(known)), key=lambda position: abs(known[position] - value))


def _real_timestep_at(process: Process, value: float) -> float:
    """By bisection."""
    low, high = 0.0, float(process.max_timestep)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if half_log_snr(process.level(middle)) > value else (low, middle)
    return high


def check_num_inference_steps(num_inference_steps: int, num_train_timesteps: int = 1000) -> None:
    """Raise ValueError unless 1 <= num_inference_steps <= num_train_timesteps."""
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(f"num_inference_steps must be between 1 and {num_train_timesteps}, got {num_inference_steps}")


def _whole(timestep: float | int) -> int:
    if timestep != int(timestep):
        raise ValueError(f"timesteps of this process must be whole numbers, got {timestep}")
    return int(timestep)


def _check_order(values: Sequence[float | int]) -> None:
    if not values:
        raise ValueError("timesteps must hold at least one entry, got an empty list")
    for position, (before, after) in enumerate(pairwise(values), start=1):
        if not after <= before:
            raise ValueError(f"timesteps must not increase, got {before} then {after} at position {position}")
