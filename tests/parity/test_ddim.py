"""Sampling on any list: the official trajectories, and diffusers where its stride is right."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from solvers import dpm_solver_sample

import idcompress
from idcompress.core.ddim import ddim_trajectory
from idcompress.core.guidance import dual_guidance
from idcompress.core.process import scaled_linear_alphas_cumprod
from idcompress.schedulers import FixedTimestepsScheduler

ALPHAS = scaled_linear_alphas_cumprod()


def guided(fixture, unet):
    f = fixture.trajectory
    image = torch.cat([f["image_latents"], f["image_latents"], torch.zeros_like(f["image_latents"])])
    context = torch.cat([f["text_context"], f["uncond_context"], f["uncond_context"]])
    scales = fixture.settings["cfg_text"], fixture.settings["cfg_image"]

    def denoise(sample, timestep):
        output = unet(torch.cat([sample.repeat(3, 1, 1, 1), image], dim=1), timestep, context).sample
        return dual_guidance(*output.chunk(3), *scales)

    return denoise


@pytest.mark.parametrize("depth", [13, 9])
@pytest.mark.parametrize("sequence", ["gamma0.5_coef30_n8", "hand"])
def test_official_trajectories(official_ip2p, sequence, depth):
    f = official_ip2p
    timesteps = f.settings["sequences"][sequence]
    recorded = f.trajectory[f"{sequence}/D{depth:02d}/x0"]
    states = f.trajectory[f"{sequence}/D{depth:02d}/x"]
    denoise = guided(f, idcompress.depth_skip(f.unet, depth))
    atol = 5e-5 * states.std().item()
    for ours, theirs in zip(ddim_trajectory(denoise, f.trajectory["noise"], timesteps, ALPHAS), recorded, strict=True):
        torch.testing.assert_close(ours.pred_original_sample, theirs, atol=atol, rtol=0)

    scheduler = FixedTimestepsScheduler(timesteps=timesteps)
    scheduler.set_timesteps(100)
    sample = f.trajectory["noise"]
    for timestep in scheduler.timesteps:
        sample = scheduler.step(denoise(sample, timestep), timestep, sample).prev_sample
    torch.testing.assert_close(sample, recorded[-1], atol=atol, rtol=0)


def random_network(sample, timestep):
    torch.manual_seed(int(timestep))
    return 0.7 * sample + 0.3 * torch.randn(sample.shape, dtype=sample.dtype)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 10, 50])
def test_scheduler_equals_diffusers_where_its_stride_is_right(prediction_type, eta, steps):
    theirs = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type=prediction_type,
        timestep_spacing="leading",
    )
    theirs.set_timesteps(steps)
    ours = FixedTimestepsScheduler.from_config(theirs.config, timesteps=theirs.timesteps.tolist())
    ours.set_timesteps(steps)
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ends = []
    for scheduler in (ours, theirs):
        sample, generator = start, torch.Generator().manual_seed(1)
        for timestep in scheduler.timesteps:
            output = random_network(sample, timestep)
            sample = scheduler.step(output, timestep, sample, eta=eta, generator=generator).prev_sample
        ends.append(sample)
    torch.testing.assert_close(ends[0], ends[1], rtol=2e-5, atol=2e-5)


def test_diffusers_ddim_cannot_follow_a_list():
    """The reason for our scheduler: the stock one steps by stride whatever its timesteps say."""
    timesteps = [999, 900, 700, 300, 20]
    stock = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    stock.set_timesteps(5)
    stock.timesteps = torch.tensor(timesteps)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sample = start
    for timestep in stock.timesteps:
        sample = stock.step(random_network(sample, timestep), timestep, sample).prev_sample
    ours = idcompress.ddim_sample(random_network, start, timesteps, ALPHAS)
    assert (sample - ours).abs().max() > 0.5


@pytest.mark.parametrize("timesteps", [[999, 871, 640, 402, 163, 37, 0], [999, 500, 20], [800, 400]])
def test_dpm_solver_equals_diffusers(timesteps):
    theirs = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", solver_order=2, final_sigmas_type="zero"
    )
    theirs.set_timesteps(timesteps=timesteps)
    start = sample = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for timestep in theirs.timesteps:
        sample = theirs.step(random_network(sample, timestep), timestep, sample).prev_sample
    ours = dpm_solver_sample(random_network, start, timesteps, ALPHAS)
    torch.testing.assert_close(ours, sample, rtol=1e-4, atol=1e-4)


def test_repeats_change_nothing():
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, repeated = [999, 600, 200, 3, 0], [999, 600, 600, 200, 3, 3, 3, 0, 0]
    expected = idcompress.ddim_sample(random_network, start, plain, ALPHAS)
    torch.testing.assert_close(idcompress.ddim_sample(random_network, start, repeated, ALPHAS), expected)
    torch.testing.assert_close(
        dpm_solver_sample(random_network, start, repeated, ALPHAS),
        dpm_solver_sample(random_network, start, plain, ALPHAS),
    )
    scheduler, sample = FixedTimestepsScheduler(timesteps=repeated), start
    scheduler.set_timesteps(3)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(random_network(sample, timestep), timestep, sample).prev_sample
    torch.testing.assert_close(sample, expected)
