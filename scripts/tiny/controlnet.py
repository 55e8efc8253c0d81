"""The base on captions, and its control branch on edges; only the branch needs OpenCV."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel
from torch import Tensor, nn

from idcompress.models.tiny.build import LATENT_CHANNELS, build_controlnet

from .autoencoder import encoded, photos_of, trained_vae
from .diffusion import Noise, Pool, text_and_unet, text_of, tokens_of, v_loss
from .files import averaged
from .loop import Job, device_of
from .photos import Photos, caption_rows, caption_texts


@torch.no_grad()
def caption_block(photos: Photos, vae: AutoencoderKL, count: int, with_edges: bool) -> dict[str, Tensor]:
    """Latents of crops, rows of their captions, and edge maps; those with fewest edges left out."""
    image = photos.crops(count + count // 4 if with_edges else count)
    if not with_edges:
        return {"latents": encoded(vae, image), "caption": caption_rows(image)}
    from idcompress.images.canny import canny

    edges = canny(image)[:, 0] > 0.5
    kept = edges.flatten(1).float().mean(1).topk(count).indices
    image, edges = image[kept], edges[kept]
    return {"latents": encoded(vae, image), "caption": caption_rows(image), "edges": edges}


def caption_batch(
    pool: Pool, noise: Noise, scale: float, batch: int, share: float, without: int, rate: float
) -> tuple[Tensor, ...]:
    """Noised latents, v, timesteps, rows of prompts, of which a share `rate` is row `without`; blocks and rows."""
    blocks, rows = pool.rows("latents", batch)
    sample, v, timesteps = noise(pool.parts["latents"][blocks, rows].float() * scale, share)
    prompts = pool.parts["caption"][blocks, rows]
    prompts = torch.where(torch.rand(batch, device=prompts.device) < rate, without, prompts)
    return sample, v, timesteps, prompts, blocks, rows


def base_job(args: argparse.Namespace) -> Job:
    """The text-conditional base on captions: text encoder and U-Net together."""
    device = device_of(args.device)
    photos, vae, noise = photos_of(args), trained_vae(args), Noise(device)
    pool = Pool(args, partial(caption_block, photos, vae, with_edges=False))
    ip2p = Path(args.work) / "ip2p.pt"
    tokenizer, model = text_and_unet("controlnet", args.seed, args.init)
    if not args.init and ip2p.exists() and not args.warm:  # what it learned saves hours
        _, trained = text_and_unet("ip2p", args.seed)
        weights = averaged(trained, ip2p).state_dict()
        weights["unet.conv_in.weight"] = weights["unet.conv_in.weight"][:, :LATENT_CHANNELS]
        model.load_state_dict(weights)
    tokens = tokens_of(tokenizer, [*caption_texts(), ""], device)

    def draw(share: float) -> tuple[Tensor, ...]:
        return caption_batch(pool, noise, vae.config.scaling_factor, args.batch, share, len(tokens) - 1, 0.15)[:4]

    def loss(model: Any, sample: Tensor, v: Tensor, timesteps: Tensor, prompts: Tensor) -> Tensor:
        text = text_of(model["text_encoder"], tokens, prompts)
        return v_loss(model["unet"](sample.to(text.dtype), timesteps, text).sample, v)

    return Job(model, draw, loss, ("unet",))


def branch_job(args: argparse.Namespace) -> Job:
    """The control branch on canny edges, the base frozen."""
    device = device_of(args.device)
    photos, vae, noise = photos_of(args), trained_vae(args), Noise(device)
    pool = Pool(args, partial(caption_block, photos, vae, with_edges=True))
    tokenizer, base = text_and_unet("controlnet", args.seed)
    if not args.warm:
        averaged(base, Path(args.work) / "base.pt")
    torch.manual_seed(args.seed)
    if args.init:
        controlnet = ControlNetModel.from_pretrained(args.init, subfolder="controlnet").float()
    else:
        controlnet = build_controlnet(base["unet"])
    model = nn.ModuleDict(
        {"controlnet": controlnet.requires_grad_(True).train(), "unet": base["unet"].requires_grad_(False)}
    )
    tokens = tokens_of(tokenizer, [*caption_texts(), ""], device)
    with torch.no_grad():
        table = base["text_encoder"].to(device)(tokens)[0]

    def draw(share: float) -> tuple[Tensor, ...]:
        scale = vae.config.scaling_factor
        sample, v, timesteps, prompts, blocks, rows = caption_batch(
            pool, noise, scale, args.batch, share, len(tokens) - 1, 0.3
        )
        return sample, v, timesteps, table[prompts], pool.parts["edges"][blocks, rows]

    def loss(model: Any, sample: Tensor, v: Tensor, timesteps: Tensor, text: Tensor, edges: Tensor) -> Tensor:
        unet, controlnet = model["unet"], model["controlnet"]
        sample, text = sample.to(unet.dtype), text.to(unet.dtype)
        condition = edges.to(unet.dtype).unsqueeze(1).expand(-1, 3, -1, -1)
        down, middle = controlnet(sample, timesteps, text, condition, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return v_loss(unet(sample, timesteps, text, **residuals).sample, v)

    return Job(model, draw, loss, ("controlnet", "unet"))
