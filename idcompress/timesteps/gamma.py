"""The paper's one-parameter family of biased timesteps, searched greedily for the best gamma."""

import dataclasses

from ..core.timestep_search import Search, gamma_search, gamma_timesteps
from ..errors import IdcError
from ..types import Schedule, ScheduleRequest

SOURCE = "Kim et al., Diffusion Model Compression for Image-to-Image Translation, ACCV 2024, Sec. 3.3 and Alg. 2"


NEEDS = ("score", "better")


def timesteps(
    request: ScheduleRequest, *, gamma: float | None = None, bias: float = 30.0, search: Search = "direction_first"
) -> Schedule:
    """Search gamma by the request's score, or use a given one.

    Args:
        gamma: take this value and evaluate nothing.
        bias: the scale-down coefficient; 30 in the released searches.
        search: "direction_first" (the paper), "released_up" or "released_down" (the released scripts' fixed sides).
    """

    def sequence(value: float) -> list[float]:
        count = request.process.num_train_timesteps
        return list[float](gamma_timesteps(value, request.num_inference_steps, bias=bias, num_train_timesteps=count))

    if gamma is not None:
        return Schedule(sequence(gamma), {"gamma": gamma, "bias": bias})
    score = request.score
    if score is None:
        raise IdcError("timesteps=gamma searches by sampling; give timesteps.gamma=VALUE to use a known one")
    better = request.better
    found = gamma_search(
        lambda value: score(sequence(value), gamma=value),
        better=better and (lambda value, other: better(sequence(value), sequence(other), gamma=(value, other))),
        search=search,
    )
    walk = [dataclasses.asdict(probe) for probe in found.probes]
    return Schedule(sequence(found.gamma), {"gamma": found.gamma, "bias": bias, "search": search, "walk": walk})
