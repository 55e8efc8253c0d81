"""Samplers of the registry as plain functions, called as `ddim_sample` is."""

from idcompress.core.ddim import without_cache
from idcompress.core.plan import Plan
from idcompress.core.process import VariancePreserving, check_timesteps
from idcompress.core.sample import sample
from idcompress.samplers import dpm_solver


def dpm_solver_sample(denoise, start, timesteps, alphas_cumprod, prediction_type="epsilon"):
    """DPM-Solver++ 2M over a list of timesteps."""
    process = VariancePreserving(alphas_cumprod, prediction_type)
    plan = Plan.over(check_timesteps(timesteps, process.num_train_timesteps))
    return sample(without_cache(denoise), start, plan, process, dpm_solver.SAMPLER)
