"""DPM-Solver++ 2M, second order where it has a step to look back on."""

import math
from collections.abc import Sequence

from torch import Tensor

from ..core.process import Level, half_log_snr
from ..core.sample import Moment

SOURCE = "Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, arXiv 2211.01095"
CITATION = """@article{lu2022dpmsolverpp,
  title   = {{DPM-Solver++}: Fast Solver for Guided Sampling of Diffusion Probabilistic Models},
  author  = {Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and Zhu, Jun},
  journal = {arXiv:2211.01095},
  year    = {2022}
}"""


class DpmSolver:
    """The multistep form for predictions of x_0.

    A repeated timestep has a step of length zero, on which the formula divides by zero; since such a step changes
    nothing, repeats are passed over before the network is called. The first and the last move are of first order.

    Source: arXiv 2211.01095, algorithm 2.
    """

    ORDER = 2
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
        now, denoised = history[-1], history[-1].prediction.pred_original_sample
        if next_level.noise == 0:
            return denoised
        h = half_log_snr(next_level) - half_log_snr(now.level)
        extrapolated = denoised
        if len(history) > 1:
            before = history[-2]
            ratio = (half_log_snr(now.level) - half_log_snr(before.level)) / h
            extrapolated = denoised + (denoised - before.prediction.pred_original_sample) / (2 * ratio)
        moved: Tensor = next_level.noise / now.level.noise * now.sample
        return moved - next_level.signal * math.expm1(-h) * extrapolated


SAMPLER = DpmSolver()
