"""Models that see something beside the latents under the empty text: inpainting, high-frequency synthesis."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from torch import Tensor

from idcompress.images.deblur import SIGMA_SHARE, restored
from idcompress.images.masks import KINDS, draw_mask, masked
from idcompress.models.tiny.build import LATENT_CHANNELS

from .autoencoder import encoded, photos_of, trained_vae
from .diffusion import Noise, Pool, allow_hidden_skips, hide_skips, kept_skips, text_and_unet, tokens_of, v_loss
from .files import averaged
from .loop import Job, device_of
from .photos import CROP_PX, Photos

MASKS = 2048  # that are drawn once, of each kind


def given_job(args: argparse.Namespace, make: Callable[[Photos, AutoencoderKL, int], dict[str, Tensor]]) -> Job:
    """A U-Net that sees something given beside the latents, under the empty prompt; from the editor's weights.

    Args:
        make: photographs, autoencoder, count -> `latents` (count, C, h, w) of the wanted pictures, and `given`
            (count, ..., h, w), as the U-Net takes it.
    """
    device = device_of(args.device)
    photos, vae, noise = photos_of(args), trained_vae(args), Noise(device)
    pool = Pool(args, partial(make, photos, vae))
    tokenizer, model = text_and_unet(args.command, args.seed, args.init)
    ip2p = Path(args.work) / "ip2p.pt"
    if not args.init and ip2p.exists() and not args.warm:
        _, trained = text_and_unet("ip2p", args.seed)
        weights = averaged(trained, ip2p).state_dict()
        stem = model["unet"].conv_in.weight.detach().clone()
        if stem.shape[1] != weights["unet.conv_in.weight"].shape[1]:  # a mask between the two
            stem[:, :LATENT_CHANNELS], stem[:, -LATENT_CHANNELS:] = weights["unet.conv_in.weight"].split(
                LATENT_CHANNELS, 1
            )
            stem[:, LATENT_CHANNELS:-LATENT_CHANNELS] = 0
            weights["unet.conv_in.weight"] = stem
        model.load_state_dict(weights)
    model["text_encoder"].requires_grad_(False)
    allow_hidden_skips(model["unet"])
    with torch.no_grad():
        text = model["text_encoder"](tokens_of(tokenizer, [""], torch.device("cpu")))[0].to(device)

    def draw(share: float) -> tuple[Tensor, ...]:
        blocks, rows = pool.rows("latents", args.batch)
        latents = pool.parts["latents"][blocks, rows].float() * vae.config.scaling_factor
        sample, v, timesteps = noise(latents, share)
        kept = kept_skips(timesteps, args.skip_dropout, share)
        return torch.cat([sample, pool.parts["given"][blocks, rows].float()], 1), v, timesteps, kept

    def loss(model: Any, sample: Tensor, v: Tensor, timesteps: Tensor, kept: Tensor) -> Tensor:
        unet = model["unet"]
        hide_skips(unet, kept)
        prompt = text.to(unet.dtype).repeat(len(sample), 1, 1)
        return v_loss(unet(sample.to(unet.dtype), timesteps, prompt).sample, v)

    return Job(model, draw, loss, ("unet",))


def inpaint_job(args: argparse.Namespace) -> Job:
    """The inpainter: mask and masked picture beside the latents, in diffusers' order."""
    generator = torch.Generator().manual_seed(args.seed)
    bank = torch.stack([draw_mask(kind, CROP_PX, CROP_PX, generator) for kind in KINDS for _ in range(MASKS)])
    bank = bank.to(device_of(args.device))

    @torch.no_grad()
    def make(photos: Photos, vae: AutoencoderKL, count: int) -> dict[str, Tensor]:
        image = photos.crops(count)
        mask = bank[torch.randint(len(bank), (count,), device=bank.device)]
        hidden = encoded(vae, masked(image * 2 - 1, mask) / 2 + 0.5) * vae.config.scaling_factor
        small = functional.interpolate(mask, hidden.shape[-2:]).to(hidden.dtype)
        return {"latents": encoded(vae, image), "given": torch.cat([small, hidden], 1)}

    return given_job(args, make)


def high_frequency_job(args: argparse.Namespace) -> Job:
    """The synthesis of lost detail: a blurred and deblurred picture beside the latents."""

    @torch.no_grad()
    def make(photos: Photos, vae: AutoencoderKL, count: int) -> dict[str, Tensor]:
        image = photos.crops(count)
        low, high = (share * photos.size for share in SIGMA_SHARE)
        sigma = low + (high - low) * torch.rand(count, device=image.device)
        given = encoded(vae, restored(image, sigma, torch.randn_like(image)))  # unscaled, as the instruction editor's
        return {"latents": encoded(vae, image), "given": given}

    return given_job(args, make)
