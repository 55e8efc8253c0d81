"""One-parameter lists even in the arc tangent of the noise level, searched for the best parameter."""

import math

from ..core.process import check_num_inference_steps, half_log_snr, timesteps_at
from ..errors import IdcError
from ..types import Schedule, ScheduleRequest

SOURCE = "Sabour et al., Align Your Steps, arXiv 2404.14507, Theorem 3.1"
NEEDS = ("score",)


def timesteps(request: ScheduleRequest, *, c: float | None = None, factor: float = 1.5) -> Schedule:
    """noise / signal = c tan((1 - u) arctan(most / c) + u arctan(least / c)) for u from 0 to 1, ends included.

    Where data are Gaussian with deviation c, this is the list that the paper's bound is least for; c = 1 is known as
    the KL-optimal schedule. A larger c crowds timesteps near T, a smaller one near 0.

    Args:
        c: take this value and evaluate nothing.
        factor: of the search, which walks from 1 by this factor, up or down, as long as the score rises.
    """
    n, process = request.num_inference_steps, request.process
    check_num_inference_steps(n, process.num_train_timesteps)
    # A flow's timestep 0 has no noise, and a call there would add nothing.
    ends = [process.max_timestep, process.max_timestep / n if process.real_timesteps else 0]
    most, least = (math.exp(-half_log_snr(process.level(end))) for end in ends)

    def sequence(value: float) -> list[float]:
        angles = [math.atan(most / value), math.atan(least / value)]
        shares = [i / max(n - 1, 1) for i in range(n)]
        ratios = [value * math.tan((1 - u) * angles[0] + u * angles[1]) for u in shares]
        return list[float](timesteps_at(process, [-math.log(ratio) for ratio in ratios]))

    if c is not None:
        if not c > 0:
            raise IdcError(f"timesteps.c must be > 0, got {c}")
        return Schedule(sequence(c), {"c": c})
    if not factor > 1:
        raise IdcError(f"timesteps.factor must be > 1, got {factor}")
    score = request.score
    if score is None:
        raise IdcError("timesteps=arctan searches by sampling; give timesteps.c=VALUE to use a known one")
    best, value = 1.0, score(sequence(1.0), c=1.0)
    for step in (factor, 1 / factor):
        start = best
        while 1e-3 < best * step < 1e3:
            probed = score(sequence(best * step), c=best * step)
            if not probed > value:
                break
            best, value = best * step, probed
        if best != start:
            break
    return Schedule(sequence(best), {"c": best})
