"""DDIM corrected by a few numbers per step, which were fitted to a many-step run of the same model and images."""

from collections.abc import Sequence

from torch import Tensor

from ..core.ddim import ddim_step
from ..core.fit import MAX_ORDER, combined
from ..core.process import Level
from ..core.sample import Moment

SOURCE = "ours; akin to Shaul et al., Bespoke Non-Stationary Solvers, arXiv 2403.01329"
NEEDS = ("coefficients",)


class Fitted:
    """x' = DDIM's move + a x + b x_0 + c x_0 of the step before + ...; a move without numbers is DDIM's.

    The numbers are found by `core.fit`, and hold for the list, model and guidance that they were fitted for.
    """

    ORDER = MAX_ORDER
    STOCHASTIC = False
    SKIPS_REPEATS = False

    def advance(
        self,
        history: Sequence[Moment],
        next_level: Level,
        *,
        coefficients: Sequence[float | int] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        now = history[-1]
        return combined(ddim_step(now.prediction, now.level, next_level), history, coefficients or ())


SAMPLER = Fitted()
