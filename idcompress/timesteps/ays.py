"""Align Your Steps: the list published for Stable Diffusion 1.5, interpolated for other numbers of steps."""

import numpy as np

from ..core.process import (
    VariancePreserving,
    check_num_inference_steps,
    half_log_snr,
    scaled_linear_alphas_cumprod,
    timesteps_at,
)
from ..types import Schedule, ScheduleRequest

SOURCE = "Sabour et al., Align Your Steps, arXiv 2404.14507; the list as in diffusers' AysSchedules"
CITATION = """@inproceedings{sabour2024ays,
  title     = {Align Your Steps: Optimizing Sampling Schedules in Diffusion Models},
  author    = {Sabour, Amirmojtaba and Fidler, Sanja and Kreis, Karsten},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2024},
  note      = {arXiv:2404.14507}
}"""
PUBLISHED = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24)


def timesteps(request: ScheduleRequest) -> Schedule:
    """The published levels, log-linear in their noise-to-signal ratio between; the last one is that of timestep 0.

    Another process takes the timesteps at which its own ratios are nearest.
    """
    n = request.num_inference_steps
    check_num_inference_steps(n, request.process.num_train_timesteps)
    theirs = VariancePreserving(scaled_linear_alphas_cumprod())
    known = [half_log_snr(theirs.level(timestep)) for timestep in (*PUBLISHED, 0)]
    wanted = np.interp(np.linspace(0, 1, n + 1), np.linspace(0, 1, len(known)), known)
    return Schedule(timesteps_at(request.process, wanted.tolist()[:n]))
