"""UniPC of order 2: a predictor as DPM-Solver++'s, and a corrector that costs no call of the network."""

import math
from collections.abc import Sequence

from torch import Tensor

from ..core.process import Level, half_log_snr
from ..core.sample import Moment

SOURCE = "Zhao et al., UniPC: A Unified Predictor-Corrector Framework for Fast Sampling, arXiv 2302.04867"
CITATION = """@inproceedings{zhao2023unipc,
  title     = {{UniPC}: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models},
  author    = {Zhao, Wenliang and Bai, Lujia and Rao, Yongming and Zhou, Jie and Lu, Jiwen},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2023},
  note      = {arXiv:2302.04867}
}"""


class UniPC:
    """UniP and UniC for predictions of x_0, with B(h) = exp(h) - 1, as diffusers' scheduler has them by default.

    A sample is corrected once the network has been called on it, and the run goes on from the corrected sample. That
    one follows from the start and the predictions alone, so it is worked out anew from the whole history. A repeated
    timestep is passed over. The first and the last move are of first order.

    Source: arXiv 2302.04867, algorithms 7 and 8; B(h) as B_2 there.
    """

    ORDER = 1_000_000  # the whole run
    STOCHASTIC = False
    SKIPS_REPEATS = True

    def advance(
        self,
        history: Sequence[Moment],
        next_level: Level,
        *,
        coefficients: Sequence[float | int] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        if next_level.noise == 0:
            return history[-1].prediction.pred_original_sample
        corrected = history[0].sample
        for position in range(1, len(history)):
            corrected = _correct(corrected, history[max(position - 2, 0) : position + 1])
        return _predict(corrected, history[-2:], next_level)


def _predict(sample: Tensor, history: Sequence[Moment], next_level: Level) -> Tensor:
    """UniP: from the corrected sample at the last moment to the next level."""
    now = history[-1]
    moved, weight, h = _first_order(sample, now, next_level)
    if len(history) == 1:
        return moved
    return moved - weight * 0.5 * _slope(history[-2], now, h)


def _correct(sample: Tensor, history: Sequence[Moment]) -> Tensor:
    """UniC: the sample at the last moment, again from the corrected one before it, with the last prediction known."""
    before, now = history[-2:]
    moved, weight, h = _first_order(sample, before, now.level)
    change = now.prediction.pred_original_sample - before.prediction.pred_original_sample
    if len(history) == 2:
        return moved - weight * 0.5 * change
    # rho solves sum_m rho_m r_m^(k-1) = b_k for k = 1, 2, where r_2 = 1 and r_1 is -1 over steps of even length.
    grown = math.expm1(-h)
    first, second = -1 / h - 1 / grown, 2 / h**2 + 2 / (h * grown) - 1 / grown
    r = (half_log_snr(history[-3].level) - half_log_snr(before.level)) / h
    rho = (second - first) / (r - 1)
    return moved - weight * (rho * _slope(history[-3], before, h) + (first - rho) * change)


def _first_order(sample: Tensor, now: Moment, next_level: Level) -> tuple[Tensor, float, float]:
    """The exponential integrator's move, the weight of a change of x_0 on the way, and the way's length in lambda."""
    h = half_log_snr(next_level) - half_log_snr(now.level)
    weight = next_level.signal * math.expm1(-h)
    moved: Tensor = next_level.noise / now.level.noise * sample - weight * now.prediction.pred_original_sample
    return moved, weight, h


def _slope(earlier: Moment, now: Moment, h: float) -> Tensor:
    """The change of x_0 over a way of length h, by the moment before."""
    r = (half_log_snr(earlier.level) - half_log_snr(now.level)) / h
    return (earlier.prediction.pred_original_sample - now.prediction.pred_original_sample) / r


SAMPLER = UniPC()
