"""The autoencoder, and latents by it."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from torch import Tensor

from idcompress.images.edits import EDITS
from idcompress.models.tiny.build import LATENT_CHANNELS, build_vae

from .files import write_json
from .loop import Job, device_of
from .photos import Photos, data_note, edited, list_photos, psnr


def photos_of(args: argparse.Namespace, size: int | None = None) -> Photos:
    """The photographs on the device, and the note about them in --work."""
    photos = list_photos(Path(args.data), args.research)[: args.photos or None]
    write_json(Path(args.work) / "crops.json", data_note(photos, args.research))
    return Photos(photos, device_of(args.device), **({} if size is None else {"size": size}))


def gradient_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring-pixel differences: keeps edges where MSE alone blurs."""
    rows = (output.diff(dim=-1) - target.diff(dim=-1)).abs().mean()
    columns = (output.diff(dim=-2) - target.diff(dim=-2)).abs().mean()
    return rows + columns


@torch.no_grad()
def balance_channels(vae: AutoencoderKL, images: Tensor) -> None:
    """Centre the latent channels, bring their deviations halfway to each other, and set the scaling factor.

    A detail's channel may have a tenth of the deviation of brightness's, and drowns in the noise of most timesteps.
    Offset and gain go into the 1x1 convolutions around the latents, so that the pictures stay the same.

    Args:
        vae: changed in place.
        images: (B, 3, H, W) in [-1, 1], on which mean and deviation are measured.
    """
    latents = vae.encode(images).latent_dist.mode()
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    gain = (std.log().mean().exp() / std).sqrt()
    into, out = vae.quant_conv, vae.post_quant_conv
    number = len(mean)
    into.weight[:number] *= gain.view(-1, 1, 1, 1)
    into.bias[:number] = (into.bias[:number] - mean) * gain
    into.bias[number:] += 2 * gain.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight /= gain.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=round(1 / vae.encode(images).latent_dist.mode().std().item(), 5))


def vae_job(args: argparse.Namespace) -> Job:
    """The autoencoder; with --decoder-only latents stay what they are, and the decoder learns to bear noise in them."""
    photos = photos_of(args)
    torch.manual_seed(args.seed)
    vae = AutoencoderKL.from_pretrained(args.init, subfolder="vae").float() if args.init else build_vae()
    if args.decoder_only:
        args.command = "vae_decoder"
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    rng = np.random.default_rng(args.seed)
    quarter = args.batch // 4

    def draw(share: float) -> tuple[Tensor, ...]:
        """The more detailed half of some crops, a quarter of them edited; noise for the latents."""
        image = photos.crops(2 * args.batch, mixed=0.1)
        detail = image.diff(dim=-1).abs().mean((1, 2, 3)) + image.diff(dim=-2).abs().mean((1, 2, 3))
        image = image[detail.topk(args.batch).indices[torch.randperm(args.batch, device=image.device)]]
        edits = np.repeat(rng.choice(len(EDITS), 4, replace=False), -(-quarter // 4))[:quarter]
        image[:quarter] = edited(image[:quarter], edits)
        noise = torch.randn(args.batch, LATENT_CHANNELS, photos.size // 4, photos.size // 4, device=photos.device)
        if args.decoder_only:
            reach = torch.rand(args.batch, 1, 1, 1, device=photos.device).square()
            noise = args.latent_noise * reach * noise / vae.config.scaling_factor
        return image * 2 - 1, noise

    def loss(vae: AutoencoderKL, image: Tensor, noise: Tensor) -> Tensor:
        if args.decoder_only:
            with torch.no_grad():
                latents = vae.encode(image.to(vae.dtype)).latent_dist.mode().float() + noise
            kl = 0.0
        else:
            posterior = vae.encode(image.to(vae.dtype)).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            latents = mean + (0.5 * logvar).exp() * noise
            kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        output = vae.decode(latents.to(vae.dtype)).sample.float()
        return (
            functional.mse_loss(output, image)
            + args.l1 * functional.l1_loss(output, image)
            + 0.5 * args.l1 * gradient_loss(output, image)
            + args.kl * kl
        )

    def report() -> str:
        image = photos.crops(64)
        vae.eval()
        reached = psnr(vae.decode(vae.encode(image * 2 - 1).latent_dist.mode()).sample / 2 + 0.5, image).mean().item()
        if not args.decoder_only:
            balance_channels(vae, photos.crops(256) * 2 - 1)
        vae.save_pretrained(Path(args.work) / "vae")
        return f"new crops of the photographs trained on {reached:.2f} dB, scale {vae.config.scaling_factor}"

    return Job(vae, draw, loss, (), report)


def trained_vae(args: argparse.Namespace) -> AutoencoderKL:
    """The autoencoder that `vae` has trained, frozen; on a GPU in half precision."""
    folder = Path(args.work) / "vae"
    if not folder.is_dir() and not args.warm:
        raise FileNotFoundError(f"no folder {folder}; run `vae` first")
    device = device_of(args.device)
    vae = (build_vae() if args.warm else AutoencoderKL.from_pretrained(folder)).requires_grad_(False).eval()
    return vae.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)


def encoded(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Latents, not yet scaled, of images in [0, 1]."""
    parts = [vae.encode(part.to(vae.dtype) * 2 - 1).latent_dist.mode() for part in images.split(512)]
    return torch.cat(parts)
