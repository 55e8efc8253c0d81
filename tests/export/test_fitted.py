"""Fitted numbers outside of the loop: in diffusers' pipelines, in exported folders and in the NumPy program."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from idcompress import Recipe, load_pipeline
from idcompress.core.ddim import without_cache
from idcompress.core.plan import Plan, Step
from idcompress.core.process import VariancePreserving, scaled_linear_alphas_cumprod
from idcompress.core.sample import sample
from idcompress.export.numpy_sampler import numpy_code
from idcompress.samplers.fitted import SAMPLER
from idcompress.schedulers import FixedTimestepsScheduler, process_of
from idcompress.tasks._task import NumpyExample

TIMESTEPS = [981, 640, 640, 300, 3]
DRAWN = torch.randn(100, generator=torch.Generator().manual_seed(3)).tolist()
ROWS = {
    "scalars": [DRAWN[:2], DRAWN[2:5], DRAWN[5:9], [0.0, 0.1], []],
    "per channel": [DRAWN[:8], DRAWN[8:20], DRAWN[20:36], [0.0] * 8, DRAWN[:16]],
}
SMALL = ("tsopt.num_inference_steps=3", "tsopt.num_samples=2", "tsopt.reference_steps=6", "recipe=none")


def network(state, timestep):
    return torch.tanh(state.roll(1, 1) * 0.7 + float(timestep) / 2000)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_the_scheduler_steps_as_the_loop_does(tmp_path, rows, prediction_type):
    """Bit for bit, also after it was saved and loaded, and in a second run."""
    made = FixedTimestepsScheduler(timesteps=TIMESTEPS, coefficients=rows, prediction_type=prediction_type)
    made.save_pretrained(tmp_path)
    start = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    process = process_of(made)
    plan = Plan(tuple(map(Step, TIMESTEPS)), "fitted", coefficients=tuple(map(tuple, rows)))
    wanted = sample(without_cache(network), start, plan, process, SAMPLER)
    for scheduler in (made, made, FixedTimestepsScheduler.from_pretrained(tmp_path)):
        state = start
        scheduler.set_timesteps(50)
        assert scheduler.timesteps.tolist() == TIMESTEPS
        for timestep in scheduler.timesteps:
            state = scheduler.step(network(state, timestep), timestep, state).prev_sample
        assert torch.equal(state, wanted)


def test_the_scheduler_refuses_what_its_numbers_were_not_fitted_for():
    with pytest.raises(ValueError, match="coefficients must have a row for each of the timesteps"):
        FixedTimestepsScheduler(coefficients=ROWS["scalars"])
    with pytest.raises(ValueError, match="coefficients must have a row for each of the timesteps"):
        FixedTimestepsScheduler(timesteps=[5, 3], coefficients=ROWS["scalars"])
    scheduler = FixedTimestepsScheduler(timesteps=TIMESTEPS, coefficients=ROWS["scalars"])
    with pytest.raises(ValueError, match="fitted for its own list"):
        scheduler.set_timesteps(timesteps=[500, 3])
    start = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match=r"eta must be 0 where the steps have fitted coefficients, got 1\.0"):
        scheduler.step(start, 981, start, eta=1.0)


def in_numpy(sample, timestep):
    return {"model_output": np.tanh(np.roll(sample, 1, 1) * 0.7 + timestep / 2000)}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_the_numpy_program_steps_as_the_loop_does(rows):
    example = NumpyExample(
        start="sample = start",
        inputs='inputs = {{"sample": sample, "timestep": timestep}}',
        decode="decoded = sample",
    )
    process = VariancePreserving(scaled_linear_alphas_cumprod(), "v_prediction")
    levels = [process.level(timestep) for timestep in TIMESTEPS]
    lines = numpy_code(example, ["unet"], TIMESTEPS, levels, {}, "v_prediction", 4, 8, rows)
    first = next(i for i, line in enumerate(lines) if line.startswith("timesteps ="))
    last = next(i for i, line in enumerate(lines) if line.startswith("pixels ="))
    start = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    names = {"np": np, "start": start.numpy(), "unet": in_numpy}
    exec("\n".join(lines[first:last]), names)
    plan = Plan(tuple(map(Step, TIMESTEPS)), coefficients=tuple(map(tuple, rows)))
    wanted = sample(without_cache(network), start, plan, process, SAMPLER)
    assert names["decoded"].dtype == np.float32
    np.testing.assert_allclose(names["decoded"], wanted.numpy(), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("task", "scales"), [("ip2p", ("guidance_scale=2", "image_guidance_scale=1")), ("stablesr", ())]
)
def test_a_fitted_recipe_translates_and_exports(idc, random_model, task, scales):
    """The recipe, its exported folder, and the pipeline that is loaded from either give the same pictures."""
    Image.fromarray((np.arange(32 * 32 * 3) % 251).astype(np.uint8).reshape(32, 32, 3)).save("in.png")
    model = (f"task={task}", f"model.path={random_model(task)}")
    steps = [
        ("tsopt", *model, *scales, "sampler=fitted", "timesteps=uniform", *SMALL, "hydra.run.dir=run"),
        ("translate", *model, "recipe=run", "image=in.png", "output.path=here"),
        ("export", *model, "recipe=run", "export.path=folder"),
        ("translate", f"task={task}", "model.path=folder", "recipe=none", "image=in.png", "output.path=there"),
        ("translate", *model, "recipe=run", "sampler=ddim", "image=in.png", "output.path=plain"),
    ]
    for step in steps:
        result = idc(*step)
        assert result.code == 0, result.err
    pictures = {name: np.asarray(Image.open(f"{name}/in.png")) for name in ("here", "there", "plain")}
    assert (pictures["here"] == pictures["there"]).all()
    assert (pictures["here"] != pictures["plain"]).any()
    recipe = Recipe.load("run")
    wanted = [list(row) for row in recipe.plan.coefficients]
    for place in ("run", "folder"):
        config = load_pipeline(place, device="cpu").scheduler.config
        assert (config.timesteps, config.coefficients) == (list(recipe.timesteps), wanted)
    assert dataclasses.replace(Recipe.load("folder").plan, guidance={}) == dataclasses.replace(recipe.plan, guidance={})
