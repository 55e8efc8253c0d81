"""The StableSR pipeline on tiny random models: sizes, tiles, patches, noise, starts, saving, and its errors."""

import numpy as np
import PIL.Image
import pytest
import torch
from tiny_random import stablesr_pipeline

import idcompress
from idcompress.core import tiles as tiling
from idcompress.models.stablesr import (
    StableSRPipeline,
    StableSRStructureEncoder,
    num_structure_levels,
    prune_structure_encoder,
    respaced_timesteps,
)
from idcompress.schedulers import FixedTimestepsScheduler


@pytest.fixture(scope="module")
def pipe() -> StableSRPipeline:
    return stablesr_pipeline(sample_size=None)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def photo(height, width, seed=0):
    return torch.rand(1, 3, height, width, generator=seeded(seed))


def restore(pipe, image, **arguments):
    settings = {"num_inference_steps": 2, "upscale": 1, "generator": seeded(), "output_type": "pt"}
    return pipe(image, **(settings | arguments)).images


@pytest.mark.parametrize("height, width", [(1, 1), (37, 411), (64, 64), (65, 3), (1, 200)])
@pytest.mark.parametrize("upscale", [1, 2.5])
def test_any_size_comes_back_at_its_size(pipe, height, width, upscale):
    images = restore(pipe, photo(height, width), upscale=upscale, num_inference_steps=1)
    assert images.shape == (1, 3, round(height * upscale), round(width * upscale))
    assert images.isfinite().all()


def test_default_upscale_is_four(pipe):
    images = pipe(PIL.Image.new("L", (10, 20)), num_inference_steps=1).images
    assert [image.size for image in images] == [(40, 80)]
    assert images[0].mode == "RGB"


@pytest.mark.parametrize("height, width", [(500, 700), pytest.param(3000, 2000, marks=pytest.mark.slow)])
def test_large_photographs_go_through_patches(pipe, height, width):
    image = photo(height, width)
    images = restore(pipe, image, num_inference_steps=1, patch_size=256, patch_overlap=32, fidelity_weight=0)
    assert images.shape == image.shape


def test_one_side_above_the_default_patch(pipe):
    """The published splitter crashes here."""
    images = restore(pipe, photo(64, 1300), num_inference_steps=1)
    assert images.shape == (1, 3, 64, 1300)


def test_small_images_are_enlarged_to_the_size_the_model_knows():
    pipe, seen = stablesr_pipeline(sample_size=16), []
    pipe.unet.register_forward_pre_hook(lambda _module, args: seen.append(tuple(args[0].shape[-2:])))
    assert restore(pipe, photo(16, 20), upscale=4, num_inference_steps=1).shape == (1, 3, 64, 80)
    assert seen == [(16, 24)]  # 128 x 160 pixels, padded to whole latents of the U-Net


def test_padding_leaves_no_trace(pipe):
    """What is far from the border is the same whether padding was needed or was part of the image."""
    seen = []
    handle = pipe.vae.encoder.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    hook = pipe.vae.encoder.conv_in.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    restore(pipe, photo(50, 61), num_inference_steps=1)
    handle.remove(), hook.remove()
    padded = seen[0]
    assert padded.shape[-2:] == (64, 64)
    image = photo(50, 61) * 2 - 1
    torch.testing.assert_close(padded[..., :50, :61], image)
    torch.testing.assert_close(padded[..., 50:, :61], image.flip(-2)[..., 1:15, :])
    torch.testing.assert_close(padded[..., :50, 61:], image.flip(-1)[..., 1:4])


def test_tiled_equals_untiled_where_one_tile_suffices(pipe):
    image = photo(128, 192)
    whole = restore(pipe, image, tile_size=24, tile_overlap=8)
    torch.testing.assert_close(restore(pipe, image, tile_size=64), whole, atol=0, rtol=0)
    tiled = restore(pipe, image, tile_size=16, tile_overlap=8)
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)


def seam_strength(pipe):
    """The strongest step between neighbouring columns around tile borders, over the strongest elsewhere."""
    ramp = torch.linspace(0.3, 0.7, 512).expand(1, 3, 128, 512)
    tile, overlap, width = 32, 16, 64
    latents = restore(pipe, ramp, output_type="latent", tile_size=tile, tile_overlap=overlap)
    steps = latents.diff(dim=-1).abs().mean(dim=(0, 1, 2))
    origins = tiling.tile_origins(width, tile, tile - overlap)
    borders = {border for origin in origins for border in (origin, origin + tile)} - {0, width}
    inside = range(8, width - 8)  # the canvas ends in steps of its own
    near = {column for column in inside if min(abs(column + 0.5 - border) for border in borders) < 3}
    return float(steps[sorted(near)].max() / steps[sorted(set(inside) - near)].max())


def test_no_seams_on_a_smooth_image(pipe, monkeypatch):
    for module in ("idcompress.models.stablesr.pipeline", "idcompress.core.ddim"):
        monkeypatch.setattr(f"{module}.randn_like", lambda sample, generator=None: torch.zeros_like(sample))
    assert seam_strength(pipe) < 1
    monkeypatch.setattr(tiling, "gaussian_weights", lambda h, w: torch.ones(h, w, dtype=torch.float64))
    assert seam_strength(pipe) > 1.2  # flat weights leave seams


def test_batch_size_never_changes_an_image(pipe):
    first, second = photo(64, 64, 1), photo(64, 64, 2)
    together = restore(pipe, torch.cat([first, second]), generator=[seeded(1), seeded(2)])
    torch.testing.assert_close(together[:1], restore(pipe, first, generator=[seeded(1)]), atol=1e-5, rtol=0)
    torch.testing.assert_close(together[1:], restore(pipe, second, generator=seeded(2)), atol=1e-5, rtol=0)


def test_batches_are_tiled_like_single_images(pipe):
    images = torch.cat([photo(64, 192, 1), photo(64, 192, 2)])
    tiles = {"tile_size": 8, "tile_overlap": 4}
    together = restore(pipe, images, generator=[seeded(1), seeded(2)], **tiles)
    torch.testing.assert_close(together[1:], restore(pipe, images[1:], generator=seeded(2), **tiles), atol=1e-5, rtol=0)


def test_ancestral_is_eta_one_and_deterministic_ignores_noise(pipe):
    image, start = photo(64, 64), torch.randn(1, 4, 8, 8, generator=seeded())
    ancestral = restore(pipe, image, num_inference_steps=3)
    assert torch.equal(ancestral, restore(pipe, image, num_inference_steps=3, eta=1.0))
    assert torch.equal(ancestral, restore(pipe, image, num_inference_steps=3))
    deterministic = restore(pipe, image, num_inference_steps=3, eta=0, latents=start)
    assert not torch.equal(deterministic, restore(pipe, image, num_inference_steps=3, latents=start))


def test_respacing_is_the_published_running_sum():
    """Not linspace, which rounds differently for 278 lengths."""
    lists = {number: respaced_timesteps(number) for number in range(1, 1001)}
    assert lists[1] == [0]
    assert lists[1000] == list(range(1000))
    for number, timesteps in list(lists.items())[1:]:
        assert len(timesteps) == number
        assert timesteps[0] == 0
        assert timesteps[-1] == 999
        assert timesteps == sorted(set(timesteps))
    others = [n for n in range(2, 1000) if lists[n] != np.linspace(0, 999, n).round().astype(int).tolist()]
    assert len(others) == 278
    assert others[:3] == [21, 23, 31]


def test_timesteps_replace_the_respaced_ones(pipe):
    image = photo(64, 64)
    respaced = restore(pipe, image, num_inference_steps=4)
    assert torch.equal(respaced, restore(pipe, image, timesteps=respaced_timesteps(4)[::-1]))
    assert not torch.equal(respaced, restore(pipe, image, timesteps=[999, 700, 200, 0]))
    with_repeat = restore(pipe, image, timesteps=[900, 500, 500, 0], eta=0)
    torch.testing.assert_close(with_repeat, restore(pipe, image, timesteps=[900, 500, 0], eta=0), atol=1e-5, rtol=0)


def test_the_scheduler_may_bring_the_timesteps(pipe, tmp_path):
    timesteps = [900, 400, 10]
    scheduler = FixedTimestepsScheduler.from_config(pipe.scheduler.config, timesteps=timesteps, clip_sample=False)
    listed = StableSRPipeline(pipe.vae, pipe.unet, pipe.structure_encoder, scheduler, pipe.prompt_embedding)
    listed.save_pretrained(tmp_path)
    listed = StableSRPipeline.from_pretrained(tmp_path)
    listed.set_progress_bar_config(disable=True)
    expected = restore(pipe, photo(64, 64), timesteps=timesteps)
    torch.testing.assert_close(restore(listed, photo(64, 64)), expected, atol=1e-5, rtol=0)


def test_starts_and_weights_change_the_image(pipe):
    image = photo(64, 64)
    plain = restore(pipe, image)
    for change in ({"start": "image"}, {"fidelity_weight": 0}, {"color_fix": None}, {"color_fix": "wavelet"}):
        assert not torch.equal(plain, restore(pipe, image, **change))


def test_v_prediction_runs_by_its_own_formula(pipe):
    other = stablesr_pipeline(sample_size=None, prediction_type="v_prediction")
    assert not torch.equal(restore(pipe, photo(64, 64)), restore(other, photo(64, 64)))


def test_patches_see_the_same_noise(pipe):
    """A patch of a large image is what the patch alone gives, away from the blend."""
    image = photo(64, 384)
    whole = restore(pipe, image, patch_size=256, patch_overlap=64, color_fix=None)
    alone = restore(pipe, image[..., :256], color_fix=None)
    torch.testing.assert_close(whole[..., :128], alone[..., :128], atol=1e-5, rtol=0)


def test_given_latents_are_cut_into_patches(pipe):
    image, start = photo(64, 384), torch.randn(1, 4, 8, 48, generator=seeded(3))
    settings = {"color_fix": None, "eta": 0}
    whole = restore(pipe, image, patch_size=256, patch_overlap=64, latents=start, **settings)
    alone = restore(pipe, image[..., :256], latents=start[..., :32], **settings)
    torch.testing.assert_close(whole[..., :128], alone[..., :128], atol=1e-5, rtol=0)


def test_output_types(pipe):
    image = photo(64, 64)
    tensor = restore(pipe, image)
    array = restore(pipe, image, output_type="np")
    picture = restore(pipe, image, output_type="pil")[0]
    latents = restore(pipe, image, output_type="latent")
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(np.asarray(picture), (array[0] * 255).astype(np.uint8))  # truncated, as published
    assert latents.shape == (1, 4, 8, 8)
    assert torch.equal(
        pipe(image, num_inference_steps=2, upscale=1, generator=seeded(), return_dict=False, output_type="pt")[0],
        tensor,
    )


def test_images_mean_the_same_in_every_form(pipe):
    picture = PIL.Image.fromarray((photo(64, 64)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    array = np.asarray(picture).astype(np.float32) / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1)[None]
    expected = restore(pipe, picture)
    for form in (array, tensor, tensor * 2 - 1, [picture]):
        torch.testing.assert_close(restore(pipe, form), expected, atol=1e-5, rtol=0)


def test_callback_sees_every_step(pipe):
    seen = []
    restore(pipe, photo(64, 64), callback_on_step_end=lambda *call: seen.append(call), num_inference_steps=3)
    assert [(index, timestep) for _, index, timestep, _ in seen] == [(0, 999), (1, 500), (2, 0)]
    assert all(tensors["latents"].shape == (1, 4, 8, 8) for *_, tensors in seen)


def test_half_precision_runs(pipe):
    half = stablesr_pipeline(sample_size=None).to(torch.bfloat16)
    images = restore(half, photo(64, 64))
    assert images.dtype == torch.float32
    assert images.isfinite().all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"color_fix": "hue"}, "color_fix must be adain, wavelet or None, got 'hue'"),
        ({"start": "middle"}, "start must be noise or image"),
        ({"tile_size": 12}, "tile_size must be a multiple of 8"),
        ({"tile_size": 16, "tile_overlap": 16}, "overlap must be"),
        ({"patch_size": 100}, "patch_size must be a multiple of 64 pixels"),
        ({"latents": torch.zeros(1, 4, 4, 4)}, r"latents must be \(1, 4, 8, 8\) for this image"),
        ({"timesteps": [0, 999]}, "timesteps must not increase"),
        ({"num_inference_steps": 1001}, "num_inference_steps must be in 1 .. 1000"),
        ({"output_type": "jpeg"}, "output_type must be"),
    ],
)
def test_bad_arguments_say_what_to_change(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        restore(pipe, photo(64, 64), **arguments)


def test_latent_output_of_several_patches_is_refused(pipe):
    with pytest.raises(ValueError, match="raise patch_size from 64 to 128"):
        restore(pipe, photo(64, 128), output_type="latent", patch_size=64, patch_overlap=0)


def test_prompt_is_asked_for_when_none_is_stored(pipe):
    bare = StableSRPipeline(pipe.vae, pipe.unet, pipe.structure_encoder, pipe.scheduler)
    bare.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match=r"pass prompt_embeds, \(1, tokens, 8\)"):
        restore(bare, photo(64, 64))
    given = restore(bare, photo(64, 64), prompt_embeds=pipe.prompt_embedding())
    assert torch.equal(given, restore(pipe, photo(64, 64)))


def test_saved_pipeline_comes_back(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = StableSRPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    for name in ("unet", "structure_encoder", "vae", "prompt_embedding"):
        saved, back = getattr(pipe, name), getattr(loaded, name)
        assert type(saved) is type(back)
        for key, tensor in saved.state_dict().items():
            assert torch.equal(tensor, back.state_dict()[key])
    torch.testing.assert_close(restore(loaded, photo(64, 64)), restore(pipe, photo(64, 64)), atol=1e-5, rtol=0)


def test_pruned_pipeline_restores(pipe, tmp_path):
    unet = idcompress.depth_skip(pipe.unet, 8)
    encoder = prune_structure_encoder(pipe.structure_encoder, num_structure_levels(unet))
    assert len(encoder.feature_blocks) == 3
    small = StableSRPipeline(pipe.vae, unet, encoder, pipe.scheduler, pipe.prompt_embedding)
    small.set_progress_bar_config(disable=True)
    kept_all = StableSRPipeline(pipe.vae, unet, pipe.structure_encoder, pipe.scheduler, pipe.prompt_embedding)
    kept_all.set_progress_bar_config(disable=True)
    assert torch.equal(restore(small, photo(64, 64)), restore(kept_all, photo(64, 64)))
    encoder.save_pretrained(tmp_path)
    back = StableSRStructureEncoder.from_pretrained(tmp_path)
    assert set(back.state_dict()) == set(encoder.state_dict()) < set(pipe.structure_encoder.state_dict())


def test_structure_encoder_levels_are_checked(pipe):
    with pytest.raises(ValueError, match="has 4 feature levels, got num_feature_levels=5"):
        prune_structure_encoder(pipe.structure_encoder, 5)
    pruned = prune_structure_encoder(pipe.structure_encoder, 2)
    with pytest.raises(ValueError, match="has 2 feature levels"):
        prune_structure_encoder(pruned, 3)


def test_unet_wants_the_features_of_its_widths(pipe):
    latents = torch.randn(1, 4, 8, 8, generator=seeded())
    features = pipe.structure_encoder(latents, 10)
    del features[4]
    with pytest.raises(ValueError, match=r"features of width 4, got widths \[1, 2, 8\]"):
        pipe.unet(latents, 10, pipe.prompt_embedding(), structure_features=features)
    assert all(getattr(m, "structure_features", None) is None for m in pipe.unet.modules())


def test_checkpointed_blocks_recompute_with_their_features():
    """Two forwards before one backward: each recomputation must see the features of its own forward."""

    def gradients(unet):
        unet.zero_grad()
        latents = [torch.randn(1, 4, 8, 8, generator=seeded(seed)) for seed in (1, 2)]
        with torch.no_grad():
            features = [pipe.structure_encoder(one, 10) for one in latents]
        outputs = [
            unet(one, 10, pipe.prompt_embedding(), structure_features=feature).sample
            for one, feature in zip(latents, features, strict=True)
        ]
        (outputs[0] - outputs[1]).square().mean().backward()
        return {name: parameter.grad.clone() for name, parameter in unet.named_parameters()}

    pipe = stablesr_pipeline(sample_size=None)
    unet = pipe.unet.train()
    plain = gradients(unet)
    unet.enable_gradient_checkpointing()
    checkpointed = gradients(unet)
    assert plain["up_blocks.3.resnets.2.spade.shared.weight"].abs().max() > 0
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)
