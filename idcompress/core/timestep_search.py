"""Biased timestep sequences with one parameter, gamma, and the greedy search for it (Alg. 2)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch

from .process import Process, check_num_inference_steps, check_timesteps

STEP_SIZES = (0.2, 0.1, 0.05, 0.02, 0.01)
Search = Literal["direction_first", "released_up", "released_down"]


def gamma_timesteps(
    gamma: float | int, num_inference_steps: int, *, bias: float | int = 30.0, num_train_timesteps: int = 1000
) -> list[int]:
    """Timesteps spread by a power law: gamma < 1 crowds them near T, gamma > 1 near 0, 1 is uniform.

    Args:
        gamma: the exponent, > 0.
        num_inference_steps: length of the list, 1 .. num_train_timesteps.
        bias: the scale-down coefficient, >= 0. Away from gamma = 1 it moves the list off one end: the first timestep
            falls below T - 1 for gamma > 1, the last rises above 0 for gamma < 1. The released searches use 30.
        num_train_timesteps: T.

    Returns:
        num_inference_steps integers in [0, T - 1], never increasing; repeats occur at large gamma.

    Raises:
        ValueError: gamma, bias or the number of steps is out of range.

    Source: Kim et al., ACCV 2024, Sec. 3.3, with the scale-down of the released code. Float32 on purpose: a few entries
    differ by one in float64.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be > 0, got {gamma}")
    if not bias >= 0:
        raise ValueError(f"bias must be >= 0, got {bias}")
    check_num_inference_steps(num_inference_steps, num_train_timesteps)
    last = num_train_timesteps - 1
    uniform = torch.linspace(0, last, num_inference_steps, dtype=torch.float32)
    if gamma == 1:  # the law is the identity, which division by T - 1 and back would miss by rounding
        return check_timesteps(uniform.to(torch.int64).flip(0), num_train_timesteps)
    if gamma > 1:
        scaled = uniform / (last + bias * (gamma - 1))
    else:
        shift = bias * (1 / gamma - 1)
        scaled = (uniform + shift) / (last + shift)
    ascending = (last * torch.clamp(scaled**gamma, 0, 1)).to(torch.int64)
    return check_timesteps(ascending.flip(0), num_train_timesteps)


def uniform_timesteps(num_inference_steps: int, process: Process) -> list[float | int]:
    """Evenly spaced timesteps from the noisiest one down to 0, or down to T / n where timesteps are real numbers.

    A run ends on the clean picture by itself, so a call at noise 0 would add nothing.

    Raises:
        ValueError: num_inference_steps is not between 1 and T.
    """
    if not process.real_timesteps:
        found = gamma_timesteps(1.0, num_inference_steps, num_train_timesteps=process.num_train_timesteps)
        return list[float | int](found)
    check_num_inference_steps(num_inference_steps, process.num_train_timesteps)
    return [process.max_timestep * (1 - i / num_inference_steps) for i in range(num_inference_steps)]


def trailing_timesteps(num_inference_steps: int, process: Process) -> list[float | int]:
    """Evenly spaced timesteps from the noisiest one down to one stride above 0: round(T - i T / n) - 1 for i < n.

    Raises:
        ValueError: num_inference_steps is not between 1 and T.
    """
    n, length = num_inference_steps, process.num_train_timesteps
    check_num_inference_steps(n, length)
    if process.real_timesteps:  # where uniform ones end at T / n
        return uniform_timesteps(n, process)
    return [round(length - i * length / n) - 1 for i in range(n)]


def move_gamma(gamma: float, step: float, direction: int) -> float:
    """One move on the search grid: additive in gamma above 1, additive in 1/gamma below; moves towards 1 stop there."""
    if direction > 0:
        return gamma + step if gamma >= 1 else 1 / max(1 / gamma - step, 1.0)
    return 1 / (1 / gamma + step) if gamma <= 1 else max(gamma - step, 1.0)


@dataclass(frozen=True)
class GammaProbe:
    """One look at the score: the step size that led there (0 for the uniform start) and whether it became the best.

    The value is None where the probe was only compared.
    """

    gamma: float
    value: float | None
    step: float
    accepted: bool


@dataclass(frozen=True)
class GammaSearch:
    gamma: float
    value: float
    probes: list[GammaProbe]


def gamma_search(
    score: Callable[[float], float],
    *,
    better: Callable[[float, float], bool] | None = None,
    search: Search = "direction_first",
) -> GammaSearch:
    """Greedy search for the gamma with the highest score.

    Args:
        score: gamma -> value, higher is better; called at most once per gamma.
        better: (gamma, other) -> whether the first scores higher, where that costs less than both scores; called at
            most once per pair. None compares scores.
        search: "direction_first" (the paper): the best starts at the uniform sequence's score, 1.2 and 1/1.2 are both
            probed and the better side is walked. "released_up" / "released_down" (the released StableSR /
            InstructPix2Pix scripts): that side only, the best starts at 0, so uniform is never returned.

    Returns:
        The best gamma, its value, and every probe of the walk in order. A probe that the walk repeats comes from a
        cache and appears again in the list, without another call of `score`.

    Raises:
        ValueError: an unknown search.

    Source: Kim et al., ACCV 2024, Sec. 3.3 and Alg. 2; the grid and stopping rule are the released loop's.
    """
    if search not in get_args(Search):
        raise ValueError(f"search must be one of {', '.join(get_args(Search))}, got {search!r}")
    value_of = cache(score)
    compared: dict[tuple[float, float], bool] = {}

    def beats(gamma: float, other: float) -> bool:
        if better is None:
            return value_of(gamma) > value_of(other)
        if (gamma, other) not in compared:
            compared[gamma, other] = better(gamma, other)
        return compared[gamma, other]

    def probed(gamma: float, step: float, *, accepted: bool) -> GammaProbe:
        return GammaProbe(gamma, value_of(gamma) if better is None else None, step, accepted)

    gamma, probes, fixed_side = 1.0, [], search != "direction_first"
    if fixed_side:
        direction = 1 if search == "released_up" else -1
    else:
        probes.append(GammaProbe(1.0, value_of(1.0), 0.0, True))
        up, down = (move_gamma(1.0, STEP_SIZES[0], direction) for direction in (1, -1))
        direction = -1 if beats(down, up) else 1
        probes.extend(probed(g, STEP_SIZES[0], accepted=False) for g in (up, down))
    for step in STEP_SIZES:
        while True:
            probe = move_gamma(gamma, step, direction)
            # The released scripts' best starts at 0, which stands for no gamma at all.
            accepted = value_of(probe) > 0 if fixed_side and gamma == 1 else beats(probe, gamma)
            probes.append(probed(probe, step, accepted=accepted))
            if not accepted:
                break
            gamma = probe
    if fixed_side and gamma == 1:
        return GammaSearch(gamma, 0.0, probes)
    return GammaSearch(gamma, value_of(gamma), probes)
