"""What a bench lends to strategies: the reference run step by step, and denoisers that gradients flow through."""

import pytest
import torch

from idcompress import registry
from idcompress.bench.bench import Bench
from idcompress.bench.translate import load_sampler
from idcompress.core.ddim import ddim_step
from idcompress.core.plan import Plan, Step
from idcompress.core.process import CLEAN, predict
from idcompress.core.sample import sample
from idcompress.sources.load import load_source
from idcompress.tasks._task import initial_noise
from idcompress.types import Example

GUIDANCE = {
    "ip2p": {"guidance_scale": 2.0, "image_guidance_scale": 1.3},
    "controlnet": {"guidance_scale": 2.0},
    "stablesr": {},
}


@pytest.fixture(scope="module", params=list(GUIDANCE))
def bench(request, random_model):
    """Two images of a task, whose conditioning has been encoded by a run before, as in a search."""
    task, px = request.param, 64 if request.param == "stablesr" else 32
    source = {"name": "random", "path": str(random_model(task))}
    model = load_source(task, source, device="cpu", dtype="float32")
    images = torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(0))
    examples = [Example(i, f"{i}", "", image, "make it darker", condition=image) for i, image in enumerate(images)]
    return Bench(registry.load("task", task).Task(), model, examples, {})


@pytest.fixture(scope="module")
def plan(bench):
    return Plan.over([999, 600, 600, 120], guidance=GUIDANCE[bench.task.name])


@pytest.fixture(scope="module")
def images(bench, plan):
    return bench.images(bench.model.pipeline, plan, "")


def test_the_teacher_is_the_run_that_the_reference_images_come_from(bench, plan, images):
    pipeline = bench.model.pipeline
    teacher = bench.teacher(pipeline, plan)
    assert teacher.timesteps == plan.timesteps
    assert torch.equal(teacher.samples[0], initial_noise(pipeline, bench.examples, bench.seed))
    levels = [bench.model.process.level(timestep) for timestep in plan.timesteps]
    for i, (level, following) in enumerate(zip(levels, [*levels[1:], CLEAN], strict=True)):
        noise = (teacher.samples[i] - level.signal * teacher.originals[i]) / level.noise
        moved = ddim_step(type(predict(noise, noise, level, "epsilon"))(teacher.originals[i], noise), level, following)
        wanted = teacher.final if following == CLEAN else teacher.samples[i + 1]
        torch.testing.assert_close(moved, wanted, atol=1e-4, rtol=1e-4)
    for position in range(2):
        with torch.inference_mode():
            decoded = bench.task.decode(pipeline, teacher.final[[position]], bench.conditioning((position,)))
        assert torch.equal(decoded[0], images[position])


def test_gradients_flow_through_the_denoisers(bench, plan, images):
    """By the sample, and by a number of every step, all along the loop; the network's weights get none."""
    pipeline, sampler = bench.model.pipeline, load_sampler("ddim")
    finals = bench.teacher(pipeline, plan).final
    for position, (denoise, start, final) in enumerate(bench.denoisers(pipeline, plan, finals)):
        assert torch.equal(final, finals[[position]])
        leaf, scales = start.clone().requires_grad_(), torch.ones(len(plan), requires_grad=True)
        numbers = iter(scales)

        def scaled(state, step, cache, denoise=denoise, numbers=numbers):
            output, cache = denoise(state, step, cache)
            return next(numbers) * output, cache

        made = sample(scaled, leaf, plan, bench.model.process, sampler)
        torch.testing.assert_close(made.detach(), final, atol=1e-3, rtol=1e-3)  # kernels differ with gradients
        (made - 0.5 * final).square().mean().backward()
        for gradient in (leaf.grad, scales.grad):
            assert gradient.isfinite().all() and (gradient != 0).any()
        assert (scales.grad != 0).all()
        assert all(parameter.grad is None for parameter in pipeline.unet.parameters())


def test_a_gradient_is_the_slope(bench, plan, images):
    """Against a difference along a random direction."""
    denoise, start, _ = next(bench.denoisers(bench.model.pipeline, plan, torch.zeros(2, 4, 8, 8)))
    leaf = start.clone().requires_grad_()
    denoise(leaf, Step(600), None)[0].square().mean().backward()
    direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ends = [denoise(start + sign * 1e-2 * direction, Step(600), None)[0].square().mean() for sign in (1, -1)]
    assert (ends[0] - ends[1]).item() / 2e-2 == pytest.approx((leaf.grad * direction).sum().item(), rel=0.05, abs=1e-4)
