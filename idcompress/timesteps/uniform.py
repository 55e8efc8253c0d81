"""Evenly spaced timesteps from T - 1 down to 0, the sequence that every other is compared with."""

from ..core.timestep_search import uniform_timesteps
from ..types import Schedule, ScheduleRequest

SOURCE = "Song et al., Denoising Diffusion Implicit Models, arXiv 2010.02502"


def timesteps(request: ScheduleRequest) -> Schedule:
    """gamma = 1 of the paper's family: trunc(linspace(0, T - 1, n)), descending."""
    return Schedule(uniform_timesteps(request.num_inference_steps, request.process))
