"""Timesteps spaced by the square of the step index, crowded towards t = 0."""

from ..core.process import check_num_inference_steps, check_timesteps
from ..types import Schedule, ScheduleRequest

SOURCE = "Song et al., Denoising Diffusion Implicit Models, arXiv 2010.02502, appendix D.2"


def timesteps(request: ScheduleRequest) -> Schedule:
    """t_i = (T - 1) (i / n)^2 for i = n .. 1, truncated; repeats occur once n squares no longer fit below T."""
    n, last = request.num_inference_steps, request.process.num_train_timesteps - 1
    check_num_inference_steps(n, request.process.num_train_timesteps)
    values = [last * i * i // (n * n) for i in range(n, 0, -1)]
    return Schedule(list[float](check_timesteps(values, request.process.num_train_timesteps)))
