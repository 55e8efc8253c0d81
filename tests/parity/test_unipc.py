"""UniPC against diffusers' scheduler, over the lists that this one can make."""

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from idcompress.core.ddim import without_cache
from idcompress.core.plan import Plan
from idcompress.core.process import VariancePreserving, scaled_linear_alphas_cumprod
from idcompress.core.sample import sample
from idcompress.samplers.unipc import SAMPLER

WEIGHT = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 2


def network(state, timestep):
    """Any smooth function of the sample and the timestep."""
    return torch.tanh(torch.einsum("oi,bihw->bohw", WEIGHT, state) + 0.001 * timestep)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 24])
def test_unipc_equals_diffusers(steps, prediction_type, spacing):
    scheduler = UniPCMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    start = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = start
    for timestep in scheduler.timesteps:
        wanted = scheduler.step(network(wanted, timestep), timestep, wanted).prev_sample
    process = VariancePreserving(scaled_linear_alphas_cumprod().double(), prediction_type)
    found = sample(without_cache(network), start, Plan.over(scheduler.timesteps.tolist()), process, SAMPLER)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5)  # diffusers' levels are float32
