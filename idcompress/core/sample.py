"""The one sampling loop: it walks a plan, or several that begin alike as one tree, over any process by any sampler.

At each step the network says something about the present sample, and the sampler moves on to the next step's level.
The last step ends on the clean picture, whatever its timestep, as in the released compression code.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from .plan import Plan, Step
from .process import CLEAN, Level, Prediction, Process, check_for_process, predict


@runtime_checkable
class Denoise(Protocol):
    """The seam between models and algorithms: conditioning and guidance end here.

    A sample (B, ...), the step, and the cache that the call before left (None at first) give a model output of the
    sample's shape, in the process's prediction type, and the cache for the next call. A cache is a value: a call makes
    a new one and leaves the old one alone, so that branches of a tree can share it.
    """

    def __call__(self, sample: Tensor, step: Step, cache: Any) -> tuple[Tensor, Any]: ...


class Moment(NamedTuple):
    """A step that a run has taken: where it was, and what the network said there."""

    step: Step
    level: Level
    sample: Tensor
    prediction: Prediction


@runtime_checkable
class Sampler(Protocol):
    """What moves a sample from one level to the next; a row of the registry, see samplers/.

    Attributes:
        ORDER: moments that `advance` looks at, the present one included.
        STOCHASTIC: whether it wants unit noise for every move.
        SKIPS_REPEATS: whether a repeated timestep is passed over without a call of the network.
    """

    @property
    def ORDER(self) -> int: ...  # noqa: N802

    @property
    def STOCHASTIC(self) -> bool: ...  # noqa: N802

    @property
    def SKIPS_REPEATS(self) -> bool: ...  # noqa: N802

    def advance(
        self,
        history: Sequence[Moment],
        next_level: Level,
        *,
        coefficients: Sequence[float | int] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The sample at the next level.

        Args:
            history: the moments so far, oldest first, at most ORDER of them; the last one is where the run is.
            next_level: where to go; CLEAN after the last step.
            coefficients: the plan's for this move, if it has any.
            noise: unit normal, of the sample's shape, where the sampler is stochastic and the next level is not CLEAN.
        """
        ...


@runtime_checkable
class Noise(Protocol):
    """Where a stochastic sampler's noise comes from. Its state is a value, as a cache is."""

    def begin(self, sample: Tensor, timestep: float | int) -> Any:
        """The state at the first timestep."""
        ...

    def between(self, state: Any, timestep: float | int, next_timestep: float | int) -> tuple[Tensor, Any]:
        """Unit noise of a move between two timesteps, and the state after it."""
        ...


class Visit(NamedTuple):
    """A step that the loop has just taken, and the plans that end with it, each with its final sample.

    Attributes:
        history: the moments that the sampler looks at, oldest first; the last one is this step's.
    """

    position: int
    history: tuple[Moment, ...]
    finished: list[tuple[Plan, Tensor]]

    @property
    def moment(self) -> Moment:
        return self.history[-1]


class _State(NamedTuple):
    """A run between two steps."""

    history: tuple[Moment, ...] = ()
    cache: Any = None
    noise: Any = None


_Beginning = tuple[tuple[Step, ...], tuple[tuple[float | int, ...] | None, ...]]


class Beginnings:
    """What runs had come to after their first steps, so that later plans that begin alike go on from there.

    It belongs to one start, denoiser, process, sampler and noise.

    Args:
        limit: states that are kept; of more, those that were wanted longest ago go.
    """

    def __init__(self, limit: int = 128) -> None:
        self._limit, self._states = limit, OrderedDict[_Beginning, _State]()

    def find(self, beginning: _Beginning) -> _State | None:
        if beginning in self._states:
            self._states.move_to_end(beginning)
        return self._states.get(beginning)

    def keep(self, beginning: _Beginning, state: _State) -> None:
        self._states[beginning] = state
        if len(self._states) > self._limit:
            self._states.popitem(last=False)


def walk(
    denoise: Denoise,
    start: Float[Tensor, "b ..."],
    plans: Iterable[Plan],
    process: Process,
    sampler: Sampler,
    *,
    noise: Noise | None = None,
    project: Callable[[Prediction, Level], Prediction] | None = None,
    beginnings: Beginnings | None = None,
) -> Iterator[Visit]:
    """Sample plans as one tree: where they begin alike, their steps are taken once.

    Args:
        denoise: see `Denoise`.
        start: (B, ...), the sample at the first timestep of every plan.
        plans: of one sampler, guidance and fill; repetitions count once.
        process: what timesteps mean, and what the network puts out.
        sampler: what the plans name.
        noise: of the moves, for stochastic samplers.
        project: changes every prediction before it is used, where a task knows part of the result.
        beginnings: steps that are found there are not taken again, and those that are taken are kept there.

    Yields:
        Every step, depth first. No more than one sample per step of the longest plan is alive besides the results.

    Raises:
        ValueError: plans that differ in sampler, guidance or fill, or timesteps that the process does not have.
    """
    wanted: dict[Plan, list[Plan]] = {}  # the plan that is walked -> the given plans that come to it without repeats
    for plan in dict.fromkeys(plans):
        check_for_process(plan.timesteps, process)
        wanted.setdefault(without_repeats(plan) if sampler.SKIPS_REPEATS else plan, []).append(plan)
    if len({(plan.sampler, plan.fill, tuple(sorted(plan.guidance.items()))) for plan in wanted}) > 1:
        raise ValueError("plans that are walked as one tree must have one sampler, one fill and one guidance")
    starts = groupby(sorted(wanted, key=_order), key=lambda plan: plan.steps[0])
    pending = [(_State(), 0, list(group)) for _, group in starts][::-1]
    while pending:
        state, position, group = pending.pop()
        step = group[0].steps[position]
        known = None if beginnings is None else beginnings.find(_beginning(group[0], position))
        if known is not None:
            state = known
        else:
            (history, cache, noise_state), row = state, _row(group[0], position - 1)
            level, sample = process.level(step.timestep), start

            # 1. the sample at this step's level
            if noise is not None and sampler.STOCHASTIC and not history:
                noise_state = noise.begin(start, step.timestep)
            if history:
                unit = None
                if noise is not None and sampler.STOCHASTIC:
                    unit, noise_state = noise.between(noise_state, history[-1].step.timestep, step.timestep)
                sample = sampler.advance(history, level, coefficients=row, noise=unit)

            # 2. what the network says there
            model_output, cache = denoise(sample, step, cache)
            prediction = predict(model_output, sample, level, process.prediction_type)
            if project is not None:
                prediction = project(prediction, level)
            history = (*history, Moment(step, level, sample, prediction))[-sampler.ORDER :]
            state = _State(history, cache, noise_state)
            if beginnings is not None:
                beginnings.keep(_beginning(group[0], position), state)

        # 3. plans that end here are done; of the others, those that go on alike stay together
        finished = [
            (given, sampler.advance(state.history, CLEAN, coefficients=_row(plan, position)))
            for plan in group
            if len(plan) == position + 1
            for given in wanted[plan]
        ]
        yield Visit(position, state.history, finished)
        longer = [plan for plan in group if len(plan) > position + 1]
        ways = groupby(longer, key=lambda plan: (_row(plan, position), plan.steps[position + 1]))
        pending += [(state, position + 1, list(way)) for _, way in ways][::-1]


def sample_tree(
    denoise: Denoise,
    start: Float[Tensor, "b ..."],
    plans: Iterable[Plan],
    process: Process,
    sampler: Sampler,
    **options: Any,
) -> Iterator[tuple[Plan, Tensor]]:
    """Every plan with its final sample (B, ...), bit for bit what `sample` makes of it; arguments as `walk`'s."""
    for visit in walk(denoise, start, plans, process, sampler, **options):
        yield from visit.finished


def sample(
    denoise: Denoise, start: Float[Tensor, "b ..."], plan: Plan, process: Process, sampler: Sampler, **options: Any
) -> Float[Tensor, "b ..."]:
    """The final sample (B, ...) of one plan; arguments as `walk`'s."""
    ((_, final),) = sample_tree(denoise, start, [plan], process, sampler, **options)
    return final


def trajectory(
    denoise: Denoise, start: Float[Tensor, "b ..."], plan: Plan, process: Process, sampler: Sampler, **options: Any
) -> Iterator[Visit]:
    """Every step of one plan as it is taken, so that a caller can show, keep or stop; arguments as `walk`'s."""
    return walk(denoise, start, [plan], process, sampler, **options)


def shared_calls(plans: Iterable[Plan], sampler: Sampler | None = None) -> int:
    """Calls of the network with which one tree of plans samples a batch: one for every distinct beginning.

    Args:
        sampler: what the plans name; some pass over repeated timesteps.
    """
    beginnings = set()
    for plan in plans:
        if sampler is not None and sampler.SKIPS_REPEATS:
            plan = without_repeats(plan)
        beginnings |= {_beginning(plan, position) for position in range(len(plan))}
    return len(beginnings)


def _beginning(plan: Plan, position: int) -> _Beginning:
    """The steps up to a position, and the coefficients of the moves between them."""
    return plan.steps[: position + 1], tuple(_row(plan, before) for before in range(position))


def _row(plan: Plan, position: int) -> tuple[float | int, ...] | None:
    return plan.coefficients[position] if plan.coefficients is not None and position >= 0 else None


def _order(plan: Plan) -> list[tuple[Any, ...]]:
    """Brings plans that begin alike together: noisy timesteps and shallow depths first."""
    return [
        (-step.timestep, step.depth or float("inf"), step.passes, step.refresh, step.skip, _row(plan, position) or ())
        for position, step in enumerate(plan.steps)
    ]


def without_repeats(plan: Plan) -> Plan:
    """The plan whose repeated timesteps are passed over.

    Of repeats the first step stays, with the coefficients of the last, from which the run moves on.
    """
    last = {timestep: position for position, timestep in enumerate(plan.timesteps)}
    first = {timestep: position for position, timestep in reversed(list(enumerate(plan.timesteps)))}
    if len(last) == len(plan):
        return plan
    rows = None if plan.coefficients is None else tuple(plan.coefficients[position] for position in last.values())
    steps = tuple(plan.steps[position] for position in sorted(first.values()))
    return replace(plan, steps=steps, coefficients=rows)
