"""A plan: all that the sampling loop needs to know besides the model, as a value that compares, hashes and is JSON.

A step says at which timestep the network is called and what of it is computed there; a plan is its steps, the sampler
that moves between them, and the scales of guidance.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Literal, get_args

Passes = Literal["all", "held", "text"]
Fill = Literal["zero", "hold", "linear"]


@dataclass(frozen=True)
class Step:
    """One call of the networks.

    Attributes:
        timestep: where; a whole number for processes that know no others.
        depth: levels of the U-Net that are computed here; None for all that are stored.
        passes: guidance passes that are computed here: "all"; "held", which takes the guidance difference of an earlier
            step; "text", which samples without guidance.
        refresh: True calls the side networks (a control branch, a structure encoder); False reuses their last output.
        skip: names of layers of the U-Net that are passed by here: their residual branches are left out.
    """

    timestep: float | int
    depth: int | None = None
    passes: Passes = "all"
    refresh: bool = True
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.timestep, bool) or not isinstance(self.timestep, (int, float)):
            raise ValueError(f"a step's timestep must be a number, got {self.timestep!r}")
        if not math.isfinite(self.timestep) or self.timestep < 0:
            raise ValueError(f"a step's timestep must be 0 or more, got {self.timestep}")
        if self.timestep == int(self.timestep):  # 999.0 is 999: networks are called with whole numbers where they can
            object.__setattr__(self, "timestep", int(self.timestep))
        if self.depth is not None and (type(self.depth) is not int or self.depth < 1):
            raise ValueError(f"a step's depth must be null or a whole number from 1 on, got {self.depth!r}")
        if self.passes not in get_args(Passes):
            raise ValueError(f"a step's passes must be {', '.join(get_args(Passes))}, got {self.passes!r}")
        if not isinstance(self.refresh, bool):
            raise ValueError(f"a step's refresh must be true or false, got {self.refresh!r}")
        object.__setattr__(self, "skip", tuple(sorted({*self.skip})))

    @property
    def is_whole(self) -> bool:
        """Whether everything that is stored is computed."""
        return self.depth is None and self.passes == "all" and self.refresh and not self.skip

    def num_passes(self, branches: int) -> int:
        """Guidance passes that are computed, where guidance has so many branches."""
        return branches if self.passes == "all" else 1

    def to_json(self) -> dict[str, Any]:
        """As plain values; `skip` only where a layer is passed by."""
        value = asdict(self) | {"skip": list(self.skip)}
        return value if self.skip else {name: value[name] for name in value if name != "skip"}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Step":
        """The step that `to_json` wrote; fields that are left out have their defaults.

        Raises:
            ValueError: an unknown field, no timestep, or a value that a step cannot have.
        """
        known = _known(cls, value, "step", required=("timestep",))
        skip = known.pop("skip", ())
        if not isinstance(skip, (list, tuple)) or not all(isinstance(name, str) and name for name in skip):
            raise ValueError(f"a step's skip must be a list of layers' names, got {skip!r}")
        return cls(**known, skip=tuple(skip))


@dataclass(frozen=True)
class Plan:
    """How a picture is sampled.

    Attributes:
        steps: in order; timesteps never increase, and repeats are legal.
        sampler: registered name of what moves from a step to the next.
        fill: what stands for the deep levels at a step that does not compute them: "zero", as the paper's cut;
            "hold", their last state; "linear", that state extrapolated in the timestep.
        guidance: scales by their diffusers names; empty where there is no guidance.
        coefficients: of a fitted sampler, the numbers of each step; None for samplers that have none.
    """

    steps: tuple[Step, ...]
    sampler: str = "ddim"
    fill: Fill = "zero"
    guidance: Mapping[str, float | int] = field(default_factory=dict)
    coefficients: tuple[tuple[float | int, ...], ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        guidance = {name: float(scale) if _is_number(scale) else scale for name, scale in self.guidance.items()}
        object.__setattr__(self, "guidance", guidance)  # 2 and 2.0 are one scale, also in JSON
        if not self.steps:
            raise ValueError("timesteps must hold at least one entry, got a plan without steps")
        for position, (before, after) in enumerate(pairwise(self.timesteps), start=1):
            if after > before:
                raise ValueError(f"timesteps must not increase, got {before} then {after} at position {position}")
        if not isinstance(self.sampler, str) or not self.sampler:
            raise ValueError(f"a plan's sampler must be a name, got {self.sampler!r}")
        if self.fill not in get_args(Fill):
            raise ValueError(f"a plan's fill must be {', '.join(get_args(Fill))}, got {self.fill!r}")
        for name, scale in self.guidance.items():
            if not isinstance(name, str) or not _is_number(scale):
                raise ValueError(f"a plan's guidance must be numbers by name, got {name!r}: {scale!r}")
        if self.coefficients is not None:
            rows = tuple(tuple(row) for row in self.coefficients)
            object.__setattr__(self, "coefficients", rows)
            if len(rows) != len(self.steps) or not all(_is_number(number) for row in rows for number in row):
                raise ValueError(f"a plan's coefficients must be a row of finite numbers for each of {len(self)} steps")

    def __hash__(self) -> int:
        guidance = tuple(sorted(self.guidance.items()))
        return hash((self.steps, self.sampler, self.fill, guidance, self.coefficients))

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def timesteps(self) -> tuple[float | int, ...]:
        return tuple(step.timestep for step in self.steps)

    @property
    def is_shallow(self) -> bool:
        """Whether a step leaves out deep levels, so that the fill matters."""
        return any(step.depth is not None for step in self.steps)

    @property
    def is_plain(self) -> bool:
        """Whether every step computes everything that is stored."""
        return all(step.is_whole for step in self.steps)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the layers that some step passes by."""
        return tuple(sorted({name for step in self.steps for name in step.skip}))

    @property
    def all_whole(self) -> "Plan":
        """The same timesteps, sampler and numbers, with everything computed at each."""
        return replace(self, steps=tuple(Step(step.timestep) for step in self.steps), fill="zero")

    @property
    def depths(self) -> tuple[int | None, ...]:
        return tuple(step.depth for step in self.steps)

    @classmethod
    def over(
        cls,
        timesteps: Iterable[float | int],
        *,
        sampler: str = "ddim",
        guidance: Mapping[str, float | int] | None = None,
        skip: Sequence[tuple[str, ...]] = (),
    ) -> "Plan":
        """The plan that computes everything at each of some timesteps, but for layers that are passed by."""
        timesteps = list(timesteps)
        names = skip or [()] * len(timesteps)
        steps = (Step(timestep, skip=passed) for timestep, passed in zip(timesteps, names, strict=True))
        return cls(tuple(steps), sampler, guidance=guidance or {})

    def to_json(self) -> dict[str, Any]:
        """As plain values: lists, dictionaries, strings, numbers and null."""
        return {
            "steps": [step.to_json() for step in self.steps],
            "sampler": self.sampler,
            "fill": self.fill,
            "guidance": dict(self.guidance),
            "coefficients": None if self.coefficients is None else [list(row) for row in self.coefficients],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Plan":
        """The plan that `to_json` wrote; fields that are left out have their defaults.

        Raises:
            ValueError: an unknown field, no steps, or a value that a plan cannot have.
        """
        known = _known(cls, value, "plan", required=("steps",))
        if not isinstance(known["steps"], Sequence) or isinstance(known["steps"], str):
            raise ValueError(f"a plan's steps must be a list, got {known['steps']!r}")
        if not isinstance(known.get("guidance", {}), Mapping):
            raise ValueError(f"a plan's guidance must be numbers by name, got {known['guidance']!r}")
        rows = known.get("coefficients")
        if rows is not None and not (isinstance(rows, list) and all(isinstance(row, list) for row in rows)):
            raise ValueError(f"a plan's coefficients must be null or a list of lists, got {rows!r}")
        known["steps"] = tuple(Step.from_json(step) for step in known["steps"])
        known["coefficients"] = None if rows is None else tuple(tuple(row) for row in rows)
        return cls(**known)


def _known(cls: type, value: Any, what: str, *, required: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a JSON object that a dataclass has, all of them known and none of the required ones missing."""
    if not isinstance(value, Mapping):
        raise ValueError(f"a {what} must be an object, got {value!r}")
    names = [f.name for f in fields(cls)]
    for name in value:
        if name not in names:
            raise ValueError(f"a {what} has no field {name!r}; its fields are {', '.join(names)}")
    for name in required:
        if name not in value:
            raise ValueError(f"a {what} lacks the field {name!r}")
    return dict(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
