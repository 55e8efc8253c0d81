"""Inpainters in diffusers: the stock class for U-Nets of 9 channels, ours, which folders bring, for any others."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionInpaintPipeline, UNet2DConditionModel
from PIL import Image

from idcompress import load_pipeline, registry
from idcompress.bench.translate import translate
from idcompress.errors import IdcError
from idcompress.export.component import standalone
from idcompress.images.pictures import to_tensor
from idcompress.models.inpaint import InpaintPipeline
from idcompress.sources.load import load_source
from idcompress.types import Example

from .folders import classes, export_to, noise, recipe_for

CHANNELS = 6  # of the latents that the stock class refuses


def hole(size):
    """A mask, white in the middle."""
    mask = Image.new("L", (size, size))
    mask.paste(255, (size // 4, size // 4, 3 * size // 4, 3 * size // 4))
    return mask


def call(pipe, size=32, **arguments):
    """A picture by four steps from draws that are always the same, (size, size, 3)."""
    generator = torch.Generator().manual_seed(3)
    given = {"image": noise(size), "mask_image": hole(size), "generator": generator, "output_type": "np"}
    pipe.set_progress_bar_config(disable=True)
    return pipe(**{"prompt": "a cat", "num_inference_steps": 4, **given, **arguments}).images[0]


@pytest.fixture(scope="module")
def wide_model(random_model, tmp_path_factory):
    """The folder of a random inpainter of six latent channels."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    pipe = StableDiffusionInpaintPipeline.from_pretrained(random_model("inpaint"))
    torch.manual_seed(0)
    unet = {**pipe.unet.config, "in_channels": 2 * CHANNELS + 1, "out_channels": CHANNELS}
    vae = {**pipe.vae.config, "latent_channels": CHANNELS}
    pipe.register_modules(unet=UNet2DConditionModel.from_config(unet), vae=AutoencoderKL.from_config(vae))
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_it_makes_the_stock_pipelines_picture(random_model, scale):
    stock = StableDiffusionInpaintPipeline.from_pretrained(random_model("inpaint"))
    ours = InpaintPipeline(**stock.components, requires_safety_checker=False)
    assert np.array_equal(call(ours, guidance_scale=scale), call(stock, guidance_scale=scale))
    seen = []
    made = call(
        ours,
        guidance_scale=scale,
        callback_on_step_end=lambda *given: seen.append(given[1]) or given[3],
        num_images_per_prompt=2,
        output_type="latent",
    )
    assert made.shape == (4, 8, 8) and seen == [0, 1, 2, 3]


def test_other_numbers_of_channels_are_refused_by_name(wide_model, random_model):
    pipe = StableDiffusionInpaintPipeline.from_pretrained(wide_model)
    with pytest.raises(ValueError, match="either 4 or 9 input channels, not 13"):
        call(pipe)
    parts = StableDiffusionInpaintPipeline.from_pretrained(random_model("inpaint")).components
    with pytest.raises(ValueError, match=r"the U-Net must take 13 channels, 6 of latents.* got 9"):
        call(InpaintPipeline(**{**parts, "vae": pipe.vae}, requires_safety_checker=False))


def test_a_recipe_runs_as_idc_samples_it(wide_model, monkeypatch):
    """Four latent channels in diffusers' class, six in ours; the loop's picture where no posterior is drawn."""
    recipe = recipe_for("inpaint", wide_model, 9)
    pipe = load_pipeline(recipe)
    assert type(pipe) is InpaintPipeline
    image, mask = to_tensor(noise(32)), to_tensor(hole(32).convert("RGB"))
    holed = torch.where(mask > 0.5, torch.tensor(0.5), image)
    example = Example(7, "", "", holed, "a cat", target=image, condition=mask)
    model = load_source("inpaint", recipe.model, device="cpu", dtype="float32")
    task = registry.load("task", "inpaint").Task()
    looped = translate(task, model.for_recipe(recipe), [example], recipe.plan)[0]
    start = task.start(pipe, [example], model.process.level(recipe.timesteps[0]), 0)
    monkeypatch.setattr(pipe, "_encode_vae_image", lambda image, generator: scaled_mode(pipe.vae, image))
    made = call(pipe, latents=start, **recipe.guidance)
    assert np.abs(made - looped.permute(1, 2, 0).numpy()).max() < 1e-5


def scaled_mode(vae, image):
    return vae.encode(image).latent_dist.mode() * vae.config.scaling_factor


def test_published_weights_go_into_the_stock_class(random_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_for("inpaint", random_model("inpaint"), 9)
    assert type(load_pipeline(recipe)) is StableDiffusionInpaintPipeline
    folder = export_to(tmp_path / "out", recipe)
    assert not (folder / "pipeline.py").exists()
    card = (folder / "README.md").read_text()
    assert "diffusers.StableDiffusionInpaintPipeline.from_pretrained('.', dtype=torch.float32)" in card
    assert "mask_image=Image.open('mask.png')" in card and "trust_remote_code" not in card
    noise(32).save(folder / "input.png"), hole(32).save(folder / "mask.png")
    monkeypatch.chdir(folder)
    exec(card.partition("```python\n")[2].partition("```")[0], {})
    assert Image.open("output.png").size == (32, 32)


def test_others_bring_their_class(wide_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    recipe = recipe_for("inpaint", wide_model, 9)
    folder = export_to(tmp_path / "out", recipe)
    text = (folder / "pipeline.py").read_text()
    assert text == standalone(InpaintPipeline) and "idcompress." not in text
    card = (folder / "README.md").read_text()
    assert "diffusers.DiffusionPipeline.from_pretrained('.', dtype=torch.float32, trust_remote_code=True)" in card
    assert "read it first" in card
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(folder)
    ours = load_pipeline(folder)
    assert type(ours) is InpaintPipeline and set(classes(folder)) >= {"unet", "vae"}
    assert np.array_equal(call(ours), call(load_pipeline(recipe)))
    ours.save_pretrained(tmp_path / "again")
    assert np.array_equal(call(load_pipeline(tmp_path / "again")), call(ours))
    (folder / "pipeline.py").write_text(text + "\n")
    with pytest.raises(IdcError, match=r"pipeline\.py was changed"):
        load_pipeline(folder)


def test_a_cut_without_stock_form_stays_with_idcompress(wide_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_for("inpaint", wide_model, 6)
    folder = export_to(tmp_path / "out", recipe)
    assert not (folder / "pipeline.py").exists()
    assert np.array_equal(call(load_pipeline(folder)), call(load_pipeline(recipe)))
    other = tmp_path / "other"
    shutil.copytree(wide_model, other)
    with pytest.raises(IdcError, match=r"this task wants a StableDiffusionInstructPix2PixPipeline"):
        load_source("ip2p", {**recipe.model, "path": str(other)})


def test_a_plan_of_unlike_steps_is_followed(wide_model):
    recipe = recipe_for("inpaint", wide_model, None, timesteps=(981, 640, 300, 3))
    steps = tuple(dataclasses.replace(s, depth=None if i == 0 else 6) for i, s in enumerate(recipe.plan.steps))
    varied = recipe.derive({"stage": "plan"}, plan=dataclasses.replace(recipe.plan, steps=steps, fill="hold"))
    pipe = load_pipeline(varied)
    assert isinstance(pipe, InpaintPipeline) and [step.depth for step in pipe.computed][1:] == [6, 6, 6]
    assert call(pipe).shape == (32, 32, 3)
