"""The instruction editor: pairs of crops and their edits."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from idcompress.images.edits import EDITS, luma

from .autoencoder import encoded, photos_of, trained_vae
from .diffusion import (
    Noise,
    Pool,
    allow_hidden_skips,
    hide_skips,
    kept_skips,
    text_and_unet,
    text_of,
    tokens_of,
    v_loss,
)
from .loop import Job, device_of
from .photos import Photos

HARD_SHARE = 0.6  # of the edited latents; an edit that moves content takes longer to learn
EDITS_PER_CROP = 4


@torch.no_grad()
def edit_block(photos: Photos, vae: AutoencoderKL, count: int) -> dict[str, Tensor]:
    """Latents of crops and of their edits, the flattest ninth of the crops left out.

    Returns:
        `inputs` (count, ...), and for every pair: `targets`, `source` (a row of `inputs`), `edit` (a row of EDITS).
    """
    image = photos.crops(count + count // 8, mixed=0.15)
    image = image[luma(image).flatten(1).std(1).topk(count).indices]
    kinds = [sum(edit.hard == hard for edit in EDITS.values()) for hard in (False, True)]
    results, sources, edits = [], [], []
    for index, edit in enumerate(EDITS.values()):
        share = HARD_SHARE / kinds[1] if edit.hard else (1 - HARD_SHARE) / kinds[0]
        source = torch.randint(count, (max(1, round(share * EDITS_PER_CROP * count)),), device=image.device)
        results.append(encoded(vae, edit.apply(image[source])))
        sources.append(source)
        edits.append(torch.full_like(source, index))
    parts = {"targets": torch.cat(results), "source": torch.cat(sources), "edit": torch.cat(edits)}
    return {"inputs": encoded(vae, image), **parts}


def ip2p_job(args: argparse.Namespace) -> Job:
    """The instruction editor: text encoder and U-Net together."""
    device = device_of(args.device)
    photos, vae, noise = photos_of(args), trained_vae(args), Noise(device)
    scale = vae.config.scaling_factor
    pool = Pool(args, partial(edit_block, photos, vae))
    tokenizer, model = text_and_unet("ip2p", args.seed, args.init)
    allow_hidden_skips(model["unet"])
    phrasings = [edit.phrasings for edit in EDITS.values()]
    first = torch.tensor([0, *(len(p) for p in phrasings)], device=device).cumsum(0)
    tokens = tokens_of(tokenizer, [text for group in phrasings for text in group] + [""], device)
    batch = args.batch

    def draw(share: float) -> tuple[Tensor, ...]:
        blocks, rows = pool.rows("targets", batch)
        edit = pool.parts["edit"][blocks, rows]
        targets = pool.parts["targets"][blocks, rows].float() * scale
        inputs = pool.parts["inputs"][blocks, pool.parts["source"][blocks, rows]].float()
        number = first[edit + 1] - first[edit]
        prompts = first[edit] + (torch.rand(batch, device=device) * number).long().clamp_max(number - 1)
        # InstructPix2Pix, Sec. 3.2.1, with more dropout of the text: strong guidance needs a good model without it.
        drop = torch.rand(batch, device=device)
        prompts = torch.where(drop < args.text_dropout, len(tokens) - 1, prompts)
        keep_image = ((drop > 0.03) & (drop < 0.97)).float().view(-1, 1, 1, 1)  # 3 % without both, 3 % without image
        # Strong guidance starts out beyond the edit: teach the way back.
        reach = args.overshoot * torch.rand(batch, 1, 1, 1, device=device)
        drift = reach * (torch.rand_like(reach) < 0.25) * (targets - inputs * scale)
        sample, v, timesteps = noise(targets, share, drift)
        kept = kept_skips(timesteps, args.skip_dropout, share)
        return torch.cat([sample, inputs * keep_image], 1), v, timesteps, prompts, kept

    def loss(model: Any, sample: Tensor, v: Tensor, timesteps: Tensor, prompts: Tensor, kept: Tensor) -> Tensor:
        text = text_of(model["text_encoder"], tokens, prompts)
        hide_skips(model["unet"], kept)
        return v_loss(model["unet"](sample.to(text.dtype), timesteps, text).sample, v)

    return Job(model, draw, loss, ("unet",))
