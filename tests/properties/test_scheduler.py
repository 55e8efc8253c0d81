"""FixedTimestepsScheduler: its list is kept, followed and honoured inside unmodified diffusers pipelines."""

import itertools
import json
from types import SimpleNamespace

import pytest
import tiny_random
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    PNDMScheduler,
)

import idcompress
from idcompress import registry
from idcompress.adapters.pipeline import encode_image_latents, encode_prompts, fixed_scheduler, with_components
from idcompress.core.plan import Plan, Step
from idcompress.core.process import scaled_linear_alphas_cumprod
from idcompress.export.stock_form import stock_scheduler
from idcompress.schedulers import FixedTimestepsScheduler

TIMESTEPS = [999, 871, 640, 640, 163, 37]  # a repeat, and an end above 0
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ALPHAS = scaled_linear_alphas_cumprod()


def network(sample, timestep):
    torch.manual_seed(int(timestep))
    return 0.7 * sample + 0.3 * torch.randn(sample.shape, dtype=sample.dtype)


def start(batch=2):
    return torch.randn(batch, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def run(scheduler, sample, timesteps=None, **arguments):
    for timestep in scheduler.timesteps if timesteps is None else timesteps:
        sample = scheduler.step(network(sample, timestep), timestep, sample, **arguments).prev_sample
    return sample


# the list


def test_the_saved_configuration_carries_the_list(tmp_path):
    scheduler = FixedTimestepsScheduler(timesteps=TIMESTEPS, prediction_type="v_prediction")
    scheduler.save_config(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "scheduler_config.json").read_text())
    assert stored["timesteps"] == TIMESTEPS
    loaded = FixedTimestepsScheduler.from_pretrained(tmp_path / "saved")
    assert loaded.config.timesteps == TIMESTEPS
    assert loaded.timesteps.tolist() == TIMESTEPS
    assert loaded.config.prediction_type == "v_prediction"
    assert torch.equal(run(loaded, start()), run(scheduler, start()))


@pytest.mark.parametrize("stock", [DDIMScheduler, PNDMScheduler, EulerAncestralDiscreteScheduler])
def test_made_from_a_stock_configuration(stock):
    config = stock(**NOISE, prediction_type="v_prediction").config
    scheduler = FixedTimestepsScheduler.from_config(config, timesteps=TIMESTEPS, clip_sample=False)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == TIMESTEPS
    expected = idcompress.ddim_sample(network, start(), TIMESTEPS, ALPHAS, prediction_type="v_prediction")
    torch.testing.assert_close(run(scheduler, start()), expected, atol=1e-5, rtol=1e-5)


def test_defaults_are_stable_diffusions():
    scheduler = FixedTimestepsScheduler(timesteps=TIMESTEPS)
    torch.testing.assert_close(scheduler.alphas_cumprod, ALPHAS, atol=1e-6, rtol=1e-6)
    assert not scheduler.config.clip_sample
    assert scheduler.init_noise_sigma == 1
    sample = start()
    assert torch.equal(scheduler.scale_model_input(sample, 5), sample)


def test_list_wins_over_count_and_an_explicit_list_over_both():
    scheduler = FixedTimestepsScheduler(timesteps=TIMESTEPS)
    assert scheduler.timesteps.tolist() == TIMESTEPS
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == TIMESTEPS
    assert scheduler.num_inference_steps == len(TIMESTEPS)
    scheduler.set_timesteps(50, timesteps=[800, 3])
    assert scheduler.timesteps.tolist() == [800, 3]
    expected = idcompress.ddim_sample(network, start(), [800, 3], ALPHAS)
    torch.testing.assert_close(run(scheduler, start()), expected, atol=1e-5, rtol=1e-5)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == TIMESTEPS  # the list given to one run is that run's
    assert scheduler.timesteps.dtype == torch.int64


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_without_a_list_the_steps_are_ddims(spacing):
    ours = FixedTimestepsScheduler(timestep_spacing=spacing)
    theirs = DDIMScheduler(**NOISE, timestep_spacing=spacing, steps_offset=1)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7)
    assert torch.equal(ours.timesteps, theirs.timesteps)


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("timesteps", [TIMESTEPS, [402], [999, 999], [500, 0, 0]])
def test_steps_go_by_position_and_the_last_returns_x0(timesteps, set_alpha_to_one):
    scheduler = FixedTimestepsScheduler(timesteps=timesteps, set_alpha_to_one=set_alpha_to_one)
    expected = idcompress.ddim_sample(network, start(), timesteps, ALPHAS)
    for _ in range(2):  # a second run begins anew
        scheduler.set_timesteps(3)
        torch.testing.assert_close(run(scheduler, start()), expected, atol=1e-5, rtol=1e-5)
        assert scheduler.step_index == len(timesteps)


def test_begin_index():
    scheduler = FixedTimestepsScheduler(timesteps=TIMESTEPS)
    for begin in range(len(TIMESTEPS)):
        scheduler.set_timesteps(9)
        scheduler.set_begin_index(begin)
        assert scheduler.begin_index == begin
        expected = idcompress.ddim_sample(network, start(), TIMESTEPS[begin:], ALPHAS)
        result = run(scheduler, start(), scheduler.timesteps[begin:])
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    scheduler.set_timesteps(9)  # without it, the first timestep says where the run begins
    expected = idcompress.ddim_sample(network, start(), TIMESTEPS[4:], ALPHAS)
    torch.testing.assert_close(run(scheduler, start(), TIMESTEPS[4:]), expected, atol=1e-5, rtol=1e-5)


def test_one_generator_per_image_makes_batches_splittable():
    def stepped(images):
        scheduler, sample = FixedTimestepsScheduler(timesteps=TIMESTEPS), start(4)[images]
        generators = [torch.Generator().manual_seed(i) for i in images]
        for timestep in scheduler.timesteps:
            sample = scheduler.step(0.4 * sample, timestep, sample, eta=1.0, generator=generators).prev_sample
        return sample

    whole = stepped([0, 1, 2, 3])
    assert torch.equal(whole, torch.cat([stepped([0]), stepped([1, 2, 3])]))
    assert torch.equal(whole[[2, 0]], stepped([2, 0]))
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    expected = idcompress.ddim_sample(lambda x, _: 0.4 * x, start(4), TIMESTEPS, ALPHAS, eta=1.0, generator=generators)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)


def test_a_configured_eta_stands_in_for_zero(tmp_path):
    FixedTimestepsScheduler(timesteps=TIMESTEPS, eta=1.0).save_pretrained(tmp_path)
    ancestral, plain = FixedTimestepsScheduler.from_pretrained(tmp_path), FixedTimestepsScheduler(timesteps=TIMESTEPS)

    def first_step(scheduler, **arguments):
        scheduler.set_timesteps(1)
        generator = torch.Generator().manual_seed(1)
        return scheduler.step(network(start(), 999), 999, start(), generator=generator, **arguments).prev_sample

    assert torch.equal(first_step(ancestral), first_step(plain, eta=1.0))
    assert torch.equal(first_step(ancestral, eta=0.5), first_step(plain, eta=0.5))


def test_stock_schedulers_step_as_ddim_and_ancestrally():
    """The exported forms, with the same noise; repeats are legal."""
    pipeline = SimpleNamespace(scheduler=FixedTimestepsScheduler(timesteps=TIMESTEPS))
    noises = torch.randn(len(TIMESTEPS), *start().shape, generator=torch.Generator().manual_seed(2))
    for sampler, eta in (("ddim", 0), ("ancestral", 1)):
        stock, sample = stock_scheduler(pipeline, Plan.over(TIMESTEPS, sampler=sampler or "ddim")), start()
        stock.set_timesteps(timesteps=TIMESTEPS)
        for timestep, noise in zip(stock.timesteps, noises, strict=True):
            sample = stock.step(network(sample, int(timestep)), timestep, sample, variance_noise=noise).prev_sample
        expected = idcompress.ddim_sample(network, start(), TIMESTEPS, ALPHAS, eta=eta, step_noise=noises[:-1])
        torch.testing.assert_close(sample, expected, atol=1e-4, rtol=1e-4)


def test_given_noise():
    scheduler = FixedTimestepsScheduler(timesteps=TIMESTEPS)
    noise = torch.ones(2, 4, 4, 4)
    scheduler.set_timesteps(1)
    given = scheduler.step(network(start(), 999), 999, start(), eta=1.0, variance_noise=noise).prev_sample
    scheduler.set_timesteps(1)
    none = scheduler.step(network(start(), 999), 999, start(), eta=1.0, variance_noise=0 * noise).prev_sample
    a, b = (float(ALPHAS[t]) for t in TIMESTEPS[:2])
    sigma = ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5
    torch.testing.assert_close(given - none, sigma * noise, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "limit",
    [
        {"clip_sample": True, "clip_sample_range": 0.8},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5},
    ],
    ids=["clip", "threshold"],
)
def test_limits_equal_ddims_on_its_own_stride(limit, recompute, prediction_type):
    settings = {**NOISE, "clip_sample": False, **limit, "prediction_type": prediction_type, "set_alpha_to_one": True}
    theirs = DDIMScheduler(**settings)
    theirs.set_timesteps(8)
    ours = FixedTimestepsScheduler(**settings, timesteps=theirs.timesteps.tolist())
    arguments = {"eta": 0.3, "use_clipped_model_output": recompute}
    ends = [run(s, start(), **arguments, generator=torch.Generator().manual_seed(1)) for s in (ours, theirs)]
    torch.testing.assert_close(ends[0], ends[1], atol=2e-5, rtol=2e-5)
    unlimited = FixedTimestepsScheduler(
        **settings | {key: False for key in limit if limit[key] is True}, timesteps=theirs.timesteps.tolist()
    )
    free = run(unlimited, start(), **arguments, generator=torch.Generator().manual_seed(1))
    assert (free - ends[0]).abs().max() > 1e-2


def test_step_says_what_the_final_image_would_be():
    scheduler = FixedTimestepsScheduler(timesteps=TIMESTEPS)
    output = scheduler.step(network(start(), 999), 999, start())
    as_tuple = FixedTimestepsScheduler(timesteps=TIMESTEPS).step(network(start(), 999), 999, start(), return_dict=False)
    a = float(ALPHAS[999])
    x0 = (start() - (1 - a) ** 0.5 * network(start(), 999)) / a**0.5
    torch.testing.assert_close(output.pred_original_sample, x0, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(x, y) for x, y in zip(as_tuple, output.to_tuple(), strict=True))


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([100, 200], "100 then 200 at position 1"),
        ([], "at least one"),
        ([1000], r"\[0, 999\].*1000"),
        ([4, -1], r"\[0, 999\].*-1"),
    ],
)
def test_illegal_lists(timesteps, message):
    with pytest.raises(ValueError, match=message):
        FixedTimestepsScheduler(timesteps=timesteps)
    with pytest.raises(ValueError, match=message):
        FixedTimestepsScheduler().set_timesteps(timesteps=timesteps)


def test_steps_out_of_turn():
    bare = FixedTimestepsScheduler()
    with pytest.raises(ValueError, match="set_timesteps before step"):
        bare.step(start(), 5, start())
    with pytest.raises(ValueError, match="wants num_inference_steps or timesteps"):
        bare.set_timesteps()
    scheduler = FixedTimestepsScheduler(timesteps=TIMESTEPS)
    with pytest.raises(ValueError, match="timestep 700 is not in the list"):
        scheduler.step(start(), 700, start())


# inside unmodified pipelines


@pytest.fixture(scope="module", params=["ip2p", "controlnet"])
def stock(request, tmp_path_factory):
    folder = tiny_random.write_pipeline(request.param, tmp_path_factory.mktemp("pipeline") / request.param)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return request.param, pipeline


def call(task, pipeline, eta=0.0, seeds=(3, 4), **arguments):
    """The pipeline's own result and ddim_sample's over the task's closure, as latents."""
    generator = torch.Generator().manual_seed(7)
    image, latents = torch.rand(2, 3, 32, 32, generator=generator), start_latents()
    text, null = (encode_prompts(pipeline, [prompt] * 2) for prompt in ("a b", ""))
    guidance = {"guidance_scale": 3.0} | ({"image_guidance_scale": 1.4} if task == "ip2p" else {})
    conditioning = {"text": text, "null": null}
    conditioning |= {"image": encode_image_latents(pipeline, image)} if task == "ip2p" else {"condition": image}
    theirs = pipeline(
        prompt_embeds=text,
        negative_prompt_embeds=null,
        image=image,
        latents=latents,
        output_type="latent",
        eta=eta,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **guidance,
        **arguments,
    ).images
    denoise = registry.load("task", task).Task().denoise(pipeline, conditioning, guidance)

    def ours(timesteps):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return idcompress.ddim_sample(network, latents, timesteps, ALPHAS, eta=eta, generator=generators)

    def network(sample, timestep):
        return denoise(sample, Step(int(timestep)), None)[0]

    return theirs, ours


def start_latents():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(8))


@torch.no_grad()
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_unmodified_pipeline_follows_the_list(stock, eta):
    task, original = stock
    pipeline = with_components(original, {"scheduler": fixed_scheduler(original, Plan.over(TIMESTEPS))})
    theirs, ours = call(task, pipeline, eta, num_inference_steps=100)
    torch.testing.assert_close(theirs, ours(TIMESTEPS), atol=1e-4, rtol=1e-4)
    assert (theirs - ours([999, 600, 100])).abs().max() > 0.05
    assert isinstance(original.scheduler, DDIMScheduler)
    assert not isinstance(original.scheduler, FixedTimestepsScheduler)
    if eta:
        other, _ = call(task, pipeline, eta, seeds=(3, 5), num_inference_steps=100)
        torch.testing.assert_close(other[0], theirs[0], atol=1e-4, rtol=1e-4)
        assert (other[1] - theirs[1]).abs().max() > 0.05


@torch.no_grad()
@pytest.mark.parametrize("stock", ["controlnet"], indirect=True)  # the InstructPix2Pix pipeline takes no timesteps
def test_a_list_given_to_the_pipeline_wins(stock):
    task, original = stock
    pipeline = with_components(original, {"scheduler": fixed_scheduler(original, Plan.over(TIMESTEPS))})
    theirs, ours = call(task, pipeline, timesteps=[900, 400, 400, 10])
    torch.testing.assert_close(theirs, ours([900, 400, 400, 10]), atol=1e-4, rtol=1e-4)


def test_a_saved_pipeline_keeps_the_list(stock, tmp_path):
    _, original = stock
    pipeline = with_components(original, {"scheduler": fixed_scheduler(original, Plan.over(TIMESTEPS))})
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.scheduler, FixedTimestepsScheduler)
    loaded.scheduler.set_timesteps(30)
    assert loaded.scheduler.timesteps.tolist() == TIMESTEPS
    assert all(a >= b for a, b in itertools.pairwise(loaded.scheduler.config.timesteps))
