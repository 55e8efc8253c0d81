"""The numbers of the fitted sampler: ridge least squares against the states of a many-step run, one step at a time.

A step of the fitted sampler is the DDIM move plus a linear combination of the present sample and the last predictions
of x_0. The numbers of the combination are those with which it comes closest, over all images and latents, to where the
many-step run is at the next level. They are found on policy: a step's images got there by the steps fitted before it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .ddim import ddim_step
from .plan import Plan
from .process import CLEAN, Level, Process, predict
from .sample import Moment

MAX_ORDER = 3

Sums = tuple[Tensor, Tensor]  # of products: features by features, and features by what is wanted
States = Callable[[float | int | None], Tensor]


@dataclass(frozen=True)
class FitSettings:
    """How numbers are fitted.

    Attributes:
        order: predictions of x_0 in a combination, as far as a run has that many; 1 to 3.
        ridge: weight of the numbers' own size in the least squares, as a share of the features' mean energy; 0 or more.
        per_channel: numbers of its own for every channel of the latents, of which there must be three or more.
        folds: parts of the images; the result on each is scored with numbers fitted on the others. 1 scores the images
            with numbers that were fitted on them.
    """

    order: int = 3
    ridge: float = 1e-3
    per_channel: bool = False
    folds: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.order <= MAX_ORDER:
            raise ValueError(f"order must be between 1 and {MAX_ORDER}, got {self.order}")
        if not self.ridge >= 0:
            raise ValueError(f"ridge must be 0 or more, got {self.ridge}")
        if self.folds < 1:
            raise ValueError(f"folds must be at least 1, got {self.folds}")


def combined(moved: Tensor, history: Sequence[Moment], row: Sequence[float | int]) -> Tensor:
    """A move plus a row's combination of the present sample and of predictions of x_0, the latest first.

    Args:
        moved: (B, C, ...), where DDIM would go.
        history: moments, oldest first; the last one is where the run is.
        row: a number per feature, or, if there are more than 1 + MAX_ORDER, one per feature and channel. Numbers that
            are 0 leave the move as it is, bit for bit.

    Raises:
        ValueError: the row has numbers for more predictions than there are, or not one for every channel.
    """
    features = [history[-1].sample, *(moment.prediction.pred_original_sample for moment in reversed(history))]
    channels = 1 if len(row) <= 1 + MAX_ORDER else moved.shape[1]
    if len(row) % channels or len(row) // channels > len(features):
        raise ValueError(
            f"a row of {len(row)} numbers does not fit a sample of {moved.shape[1]} channels and {len(history)} "
            "predictions"
        )
    for place, feature in enumerate(features[: len(row) // channels]):
        numbers = row[place * channels : (place + 1) * channels]
        if any(numbers):
            weight = feature.new_tensor(numbers).view(-1, *[1] * (moved.ndim - 2)) if channels > 1 else numbers[0]
            moved = moved + weight * feature
    return moved


class Fitted:
    """x' = DDIM's move + a x + b x_0 + c x_0 of the step before + ...; a move without numbers is DDIM's.

    The numbers are found by `fit_plan`, and hold for the list, model and guidance that they were fitted for.
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


def fit_row(
    moves: Iterable[tuple[Sequence[Moment], Tensor]], next_level: Level, settings: FitSettings
) -> tuple[float, ...]:
    """The numbers of one move.

    Args:
        moves: per batch the moments so far, oldest first, and where the many-step run is at the next level.
        next_level: where the move goes.

    Returns:
        A number for the sample and for each of at most `order` predictions of x_0, the latest first; per channel if the
        settings say so, feature by feature.

    Raises:
        ValueError: numbers per channel of fewer than three channels, where rows could not be told apart.
    """
    return solved((sums(history, target, next_level, settings) for history, target in moves), settings)


def sums(history: Sequence[Moment], target: Tensor, next_level: Level, settings: FitSettings) -> Sums:
    """What a batch of images adds to the least squares of one move; arguments as for `fit_row`."""
    now = history[-1]
    residual = target - ddim_step(now.prediction, now.level, next_level)
    recent = list(reversed(history))[: settings.order]
    features = torch.stack([now.sample, *(past.prediction.pred_original_sample for past in recent)])
    features, residual = (_by_channel(part, settings.per_channel) for part in (features, residual[None]))
    return features @ features.mT, features @ residual.mT


def solved(added: Iterable[Sums], settings: FitSettings) -> tuple[float, ...]:
    """The numbers of one move, from what every batch adds; see `fit_row`."""
    gram = moment = torch.zeros(())
    for own_gram, own_moment in added:
        gram, moment = gram + own_gram, moment + own_moment
    channels = len(gram)
    if settings.per_channel and channels < 3:
        raise ValueError(f"per_channel wants latents of three or more channels, got {channels}")
    energy = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    penalty = settings.ridge * energy * torch.eye(gram.shape[-1], dtype=gram.dtype)
    # Least squares and not a solution: without a ridge, features may depend on one another.
    numbers = torch.linalg.lstsq(gram + penalty, moment, driver="gelsd").solution
    return tuple(numbers[..., 0].T.flatten().tolist())


def _by_channel(values: Tensor, per_channel: bool) -> Float[Tensor, "channels features numbers"]:
    """Features (F, B, C, ...) as one matrix, or as one for each channel; float64 on the CPU."""
    values = values.double().cpu()
    return values.movedim(2, 0).flatten(2) if per_channel else values.flatten(1)[None]


def fit_plan(
    plan: Plan,
    process: Process,
    over_batches: Callable[[Plan, Callable[[Sequence[Moment], States], Sums]], Iterable[Sums]],
    settings: FitSettings,
) -> Plan:
    """A plan with the numbers of every step.

    Args:
        plan: whose numbers are not looked at.
        over_batches: runs a plan with numbers for all moves but the last, and gives for every batch of images what the
            function makes of the moments up to its last step, and of the many-step run's samples by timestep, None for
            where that run ended. It is asked for ever longer beginnings of the plan, so it should keep what it has
            sampled.
        settings: see `FitSettings`.
    """
    rows: list[tuple[float, ...]] = []
    for position in range(len(plan)):
        following = plan.steps[position + 1].timestep if position + 1 < len(plan) else None
        next_level = CLEAN if following is None else process.level(following)
        beginning = replace(plan, steps=plan.steps[: position + 1], coefficients=(*rows, ()))

        def added(
            history: Sequence[Moment], states: States, at: float | int | None = following, to: Level = next_level
        ) -> Sums:
            return sums(history, states(at), to, settings)

        rows.append(solved(over_batches(beginning, added), settings))
    return replace(plan, coefficients=tuple(rows))


def state_at(
    timestep: float | int | None,
    timesteps: Sequence[float | int],
    samples: Float[Tensor, "steps b ..."],
    originals: Float[Tensor, "steps b ..."],
    final: Float[Tensor, "b ..."],
    process: Process,
) -> Float[Tensor, "b ..."]:
    """Where a many-step run was at any timestep; between its own ones, DDIM's move from the one before.

    Args:
        timestep: None for where it ended.
        timesteps, samples, originals, final: the run, as in `idcompress.types.Teacher`.
    """
    if timestep is None:
        return final
    earlier = [position for position, own in enumerate(timesteps) if own >= timestep]
    nearest = earlier[-1] if earlier else 0
    if timesteps[nearest] == timestep:
        nearest = timesteps.index(timestep)  # of repeats the first, where the run arrived
        return samples[nearest]
    level = process.level(timesteps[nearest])
    prediction = predict(originals[nearest], samples[nearest], level, "sample")
    return ddim_step(prediction, level, process.level(timestep))
