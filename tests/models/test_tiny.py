"""The embedded pipelines load with stock diffusers, run, and have Stable Diffusion's 13 depths."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from skimage import data

from idcompress.adapters.unet import full_depth
from idcompress.images.canny import canny
from idcompress.images.captions import caption
from idcompress.images.edits import EDITS
from idcompress.models.stablesr import StableSRPipeline
from idcompress.models.tiny import tiny_folder
from idcompress.models.tiny.build import (
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
    silent_attentions,
)
from scripts import train_tiny
from scripts.tiny.autoencoder import balance_channels
from scripts.tiny.photos import edited, vocabulary

TASKS = ("ip2p", "controlnet", "stablesr")


def pipeline(task: str) -> DiffusionPipeline:
    try:
        folder = tiny_folder(task)
    except LookupError as error:
        pytest.skip(str(error))
    pipeline_class = StableSRPipeline if task == "stablesr" else DiffusionPipeline
    pipe = pipeline_class.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def photo() -> torch.Tensor:
    """(1, 3, 64, 64) in [0, 1]."""
    picture = torch.from_numpy(data.coffee().copy()).permute(2, 0, 1).float()[None, :, :, 100:500] / 255
    return torch.nn.functional.interpolate(picture, size=(64, 64), mode="area")


def test_unknown_task_is_refused() -> None:
    with pytest.raises(LookupError, match="colourise"):
        tiny_folder("colourise")


@pytest.mark.parametrize("task", TASKS)
def test_loads_stock_and_runs(task: str) -> None:
    pipe = pipeline(task)
    assert full_depth(pipe.unet) == 13
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    size = 64
    if task == "stablesr":
        size = 128
        inputs = {"image": torch.nn.functional.interpolate(photo(), size=(32, 32), mode="area"), "tile_size": 32}
        inputs |= {"tile_overlap": 16}
    elif task == "ip2p":
        assert len(pipe.tokenizer("make it grayscale").input_ids) == 5  # words are single tokens, plus begin and end
        inputs = {"prompt": "make it darker", "image": photo(), "image_guidance_scale": 1.2, "guidance_scale": 3.0}
    else:
        inputs = {"prompt": "a dark photo", "image": canny(photo()).expand(-1, 3, -1, -1), "guidance_scale": 2.0}
    output = pipe(num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0), **inputs).images
    assert output.shape == (1, 3, size, size)
    assert torch.isfinite(output).all() and output.std() > 0.01


@pytest.mark.parametrize("task", TASKS)
def test_autoencoder_reconstructs_and_latents_are_scaled(task: str) -> None:
    vae = pipeline(task).vae
    with torch.no_grad():
        latents = vae.encode(photo() * 2 - 1).latent_dist.mode()
        output = vae.decode(latents).sample.clamp(-1, 1) / 2 + 0.5
    # StableSR's decoder leaves colours and contrast to the colour fix.
    assert -10 * (output - photo()).square().mean().log10() > (15 if task == "stablesr" else 18)
    assert 0.5 < float(latents.std()) * vae.config.scaling_factor < 2


def test_balancing_latent_channels_keeps_the_pictures() -> None:
    """Every channel is centred, their deviations come nearer to each other, and the scaling factor makes one of all."""
    torch.manual_seed(0)
    vae, images = build_vae().eval(), torch.rand(4, 3, 64, 64) * 2 - 1
    vae.quant_conv.weight.data[:2] *= 5  # two channels speak louder

    def encoded() -> tuple[torch.Tensor, torch.Tensor]:
        posterior = vae.encode(images).latent_dist
        return posterior.mode(), vae.decode(posterior.mean + posterior.std).sample

    with torch.no_grad():
        before, pictures = encoded()
        balance_channels(vae, images)
        after, same = encoded()
    torch.testing.assert_close(same, pictures, atol=1e-5, rtol=1e-4)
    assert after.mean((0, 2, 3)).abs().max() < 1e-4
    spread = [float(latents.std((0, 2, 3)).log().std()) for latents in (before, after)]
    assert spread[1] == pytest.approx(spread[0] / 2, rel=1e-3)
    assert after.std() * vae.config.scaling_factor == pytest.approx(1, rel=1e-3)


def test_training_pairs_take_the_edit_they_name() -> None:
    images, edits = photo() * torch.linspace(0.2, 1, 5).view(-1, 1, 1, 1), [3, 0, 3, 12, 0]
    results = edited(images, np.array(edits))
    for image, edit, result in zip(images, edits, results, strict=True):
        torch.testing.assert_close(result, list(EDITS.values())[edit].apply(image[None])[0])


@pytest.mark.parametrize(
    "stage", ["vae", "ip2p", "base", "branch", "inpaint", "high_frequency", "diffusion", "wrapping"]
)
def test_every_stage_of_training_says_what_it_wants(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole chain is rehearsed by scripts/gpu_checks.sh at toy size."""
    with pytest.raises(SystemExit):
        train_tiny.parse([stage, "--help"])
    assert "--seconds" in capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_model_card_names_data_and_figures(task: str) -> None:
    pipeline(task)
    card = json.loads((tiny_folder(task) / "model_card.json").read_text(encoding="utf-8"))
    assert card["data"]["data_digest"] and card["metrics"] and (card["guidance"] or task == "stablesr")
    assert all({"seed", "seconds", "hardware", "samples"} <= set(stage) for stage in card["training"].values())
    readme = (tiny_folder(task) / "README.md").read_text(encoding="utf-8")
    assert "License" in readme and card["data"]["data_digest"] in readme


def test_restored_photographs_beat_bicubic_ones_by_their_card() -> None:
    pipeline("stablesr")
    metrics = json.loads((tiny_folder("stablesr") / "model_card.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["target_lpips"] <= 0.85 * metrics["lpips_bicubic"]
    assert metrics["target_psnr_db"] >= metrics["psnr_bicubic_db"] - 2


def test_embedded_weights_fit_their_budget() -> None:
    assert sum(path.stat().st_size for path in tiny_weights()) <= 64e6


def tiny_weights() -> list:

    import idcompress.models.tiny

    return list(Path(idcompress.models.tiny.__file__).parent.rglob("*.safetensors"))


def test_trained_words_are_single_tokens() -> None:
    """Although pieces of one word, joined first, could have split another; CLIP takes digits one by one."""
    texts = vocabulary()
    tokenizer = build_tokenizer(texts)
    words = {word for text in texts for word in text.split() if not word.isdigit()}
    assert len(words) > 100
    assert [word for word in sorted(words) if len(tokenizer.tokenize(word)) != 1] == []
    assert len(tokenizer(caption(photo()[0])).input_ids) == 12 + 2


def test_builders() -> None:
    """Unknown words fall back to bytes, upper self-attention is silent, 12 skips and a middle block."""
    tokenizer = build_tokenizer(["make it dark"])
    assert len(tokenizer("make it dark").input_ids) == 5
    assert tokenizer.unk_token_id not in tokenizer("zürich").input_ids[1:-1]
    assert tokenizer.model_max_length == 16
    encoder = build_text_encoder(tokenizer)
    assert encoder.config.vocab_size == len(tokenizer)
    unet = build_unet(16)
    assert full_depth(unet) == 13
    silent = silent_attentions(unet)
    assert len(silent) == 10
    assert all(attention.to_out[0].weight.abs().sum() == 0 for attention in silent)
