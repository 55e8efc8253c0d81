"""Evenly spaced timesteps from T - 1 down to one stride above 0, so that no call is spent on a sample without noise."""

from ..core.timestep_search import trailing_timesteps
from ..types import Schedule, ScheduleRequest

SOURCE = "Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed, arXiv 2305.08891, Sec. 3.3"


def timesteps(request: ScheduleRequest) -> Schedule:
    """t_i = round(T - i T / n) - 1 for i = 0 .. n - 1, as diffusers' timestep_spacing="trailing"."""
    return Schedule(trailing_timesteps(request.num_inference_steps, request.process))
