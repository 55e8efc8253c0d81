"""The restoration model: pairs degraded by CPUs, the diffusion from the base, the decoder's feature wrapping.

Degrading is work for CPUs: several processes may write shards of pairs while others train; `diffusion` takes them up as
they come.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from torch import Tensor, nn

from idcompress.core.ddim import ddim_sample
from idcompress.core.timestep_search import gamma_timesteps
from idcompress.images.degrade import degrade
from idcompress.metrics import lpips
from idcompress.models.stablesr import EmptyPromptEmbedding, StableSRPipeline, adain_color_fix
from idcompress.models.tiny.build import (
    STABLESR_PX,
    build_scheduler,
    build_stablesr_unet,
    build_stablesr_vae,
    build_structure_encoder,
)

from .autoencoder import encoded, gradient_loss, trained_vae
from .diffusion import Noise, allow_hidden_skips, hide_skips, kept_skips, text_and_unet, tokens_of, v_loss
from .files import Log, averaged, write_json
from .loop import Job, device_of
from .photos import as_image, cut_crops, data_note, list_photos

LOOK_EVERY = 400  # batches between two looks for new shards of pairs
WAIT_SECONDS = 60.0  # for the first one


def enlarge(low: Tensor) -> Tensor:
    """Inputs (B, 3, h, w) in [0, 1] to four times their size, as task=stablesr enlarges them."""
    enlarged = functional.interpolate(low, scale_factor=4, mode="bicubic", align_corners=False)
    return enlarged.clamp(0, 1)


def run_pairs(args: argparse.Namespace) -> None:
    """Cut crops and degrade each once, shard by shard."""
    folder, log = Path(args.work), Log()
    photos = list_photos(Path(args.data), args.research)[: args.photos or None]
    folder.mkdir(parents=True, exist_ok=True)
    end = time.perf_counter() + args.seconds
    for shard in range(args.shard, args.shard + args.rounds * args.shards, args.shards):
        path = folder / f"pairs_{shard:03d}.npz"
        if path.exists() or time.perf_counter() > end:
            continue
        crops, _ = cut_crops(photos, args.count, args.seed + shard, STABLESR_PX, min_share=0.2)
        lows = []
        for start in range(0, args.count, 16):
            target = as_image(crops[start : start + 16])
            first = (args.seed + shard) * args.count + start
            low = degrade(target, [torch.Generator().manual_seed(first + row) for row in range(len(target))])
            lows.append((low * 255).round().to(torch.uint8).numpy())
        temporary = folder / f"unfinished_{shard}.npz"
        np.savez(temporary, target=crops, low=np.concatenate(lows))
        temporary.rename(path)
        log(f"shard {shard}: {args.count} pairs")


class Pairs:
    """Targets and inputs of all shards, 8-bit on the device."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.read: set[Path] = set()
        end = time.perf_counter() + WAIT_SECONDS
        while not list(folder.glob("pairs_*.npz")):
            if time.perf_counter() > end:
                raise FileNotFoundError(f"no pairs in {folder}; run `pairs` first")
            time.sleep(0.5)

    def new(self, most: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Shards written since the last call: targets (N, 3, H, W), inputs (N, 3, H / 4, W / 4)."""
        found = sorted(set(self.folder.glob("pairs_*.npz")) - self.read)[:most]
        self.read.update(found)
        shards = []
        for path in found:
            with np.load(path) as shard:
                target = torch.from_numpy(shard["target"]).permute(0, 3, 1, 2)
                shards.append((target.to(self.device), torch.from_numpy(shard["low"]).to(self.device)))
        return shards


def build_diffusion() -> nn.ModuleDict:
    return nn.ModuleDict({"unet": build_stablesr_unet(), "structure_encoder": build_structure_encoder()})


def empty_prompt(work: Path) -> Tensor:
    """What the base's text encoder makes of the empty prompt, (tokens, width)."""
    tokenizer, base = text_and_unet("controlnet", 0)
    averaged(base, work / "base.pt")
    with torch.no_grad():
        table: Tensor = base["text_encoder"](tokens_of(tokenizer, [""], torch.device("cpu")))[0]
    return table[0]


def diffusion_job(args: argparse.Namespace) -> Job:
    """U-Net and structure encoder together, from the base's U-Net."""
    work, device = Path(args.work), device_of(args.device)
    write_json(work / "crops.json", data_note(list_photos(Path(args.data), args.research)[: args.photos or None]))
    vae, noise, pairs = trained_vae(args), Noise(device), Pairs(work, device)
    scale, text = vae.config.scaling_factor, empty_prompt(work).to(device)
    _, base = text_and_unet("controlnet", 0)
    averaged(base, work / "base.pt")
    torch.manual_seed(args.seed)
    model = build_diffusion()
    missing, unexpected = model["unet"].load_state_dict(base["unet"].state_dict(), strict=False)
    if unexpected or not all(".spade." in name for name in missing):
        raise ValueError(f"the base has another U-Net: {unexpected or missing}")
    model.requires_grad_(True).train()
    allow_hidden_skips(model["unet"])
    parts: list[Tensor] = []
    draws = 0

    @torch.no_grad()
    def take_up() -> None:
        shards = [
            torch.stack([encoded(vae, target / 255), encoded(vae, enlarge(low / 255))], 1)
            for target, low in pairs.new()
        ]
        if shards:
            parts[:] = [torch.cat([*parts, *shards])]

    def draw(share: float) -> tuple[Tensor, ...]:
        nonlocal draws
        if draws % LOOK_EVERY == 0:
            take_up()
        draws += 1
        rows = torch.randint(len(parts[0]), (args.batch,), device=device)
        latents, image_latents = (parts[0][rows].float() * scale).unbind(1)
        sample, v, timesteps = noise(latents, share)
        return sample, v, timesteps, image_latents, kept_skips(timesteps, args.skip_dropout, share)

    def loss(model: Any, sample: Tensor, v: Tensor, timesteps: Tensor, image_latents: Tensor, kept: Tensor) -> Tensor:
        unet = model["unet"]
        features = model["structure_encoder"](image_latents.to(unet.dtype), timesteps)
        hide_skips(unet, kept)
        prompt = text.to(unet.dtype).expand(len(sample), -1, -1)
        return v_loss(unet(sample.to(unet.dtype), timesteps, prompt, structure_features=features).sample, v)

    return Job(model, draw, loss)


def build_pipeline(work: Path) -> StableSRPipeline:
    """Assemble the pipeline from the averaged weights of the checkpoints; before `wrapping`, with the first decoder."""
    model = averaged(build_diffusion(), work / "diffusion.pt")
    vae, initial = build_stablesr_vae(), AutoencoderKL.from_pretrained(work / "vae")
    if (work / "wrapping.pt").exists():
        averaged(vae, work / "wrapping.pt")
    else:
        vae.load_state_dict(initial.state_dict(), strict=False)
    vae.register_to_config(scaling_factor=initial.config.scaling_factor)
    prompt = EmptyPromptEmbedding.from_tensor(empty_prompt(work))
    pipe = StableSRPipeline(vae.eval(), model["unet"], model["structure_encoder"], build_scheduler(), prompt)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def drawn_samples(args: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Latents that the model draws for some pairs, half of them by deterministic, half by ancestral sampling.

    Returns:
        targets and enlarged inputs, (N, 3, H, W), 8-bit; latents (N, C, h, w).
    """
    pipe = build_pipeline(Path(args.work)).to(device)
    shards = Pairs(Path(args.work), device).new(12)
    targets, lows = (torch.cat(parts)[: args.count] for parts in zip(*shards, strict=True))
    found, images = [], []
    for number, low in enumerate(lows.split(args.sampling_batch)):
        image = enlarge(low / 255)
        image_latents, _ = pipe.encode_image(image * 2 - 1, torch.Generator(device).manual_seed(number))
        latents = ddim_sample(
            pipe.denoiser(image_latents, pipe.encode_prompt(len(low))),
            torch.randn_like(image_latents),
            gamma_timesteps(1.0, args.steps),
            pipe.scheduler.alphas_cumprod,
            eta=number % 2,
            generator=torch.Generator(device).manual_seed(number),
            prediction_type=pipe.scheduler.config.prediction_type,
        )
        images.append((image * 255).round().to(torch.uint8))
        found.append(latents)
    return targets, torch.cat(images), torch.cat(found)


def wrapping_job(args: argparse.Namespace) -> Job:
    """Feature wrapping and decoder on drawn latents; the encoder, and with it every latent, stays."""
    device, work = device_of(args.device), Path(args.work)
    targets, images, drawn = drawn_samples(args, device)
    initial = AutoencoderKL.from_pretrained(work / "vae")
    torch.manual_seed(args.seed)
    vae = build_stablesr_vae()
    vae.load_state_dict(initial.state_dict(), strict=False)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    perceptual = lpips.Metric(net="squeeze", weights=args.lpips).model.requires_grad_(False).to(device)
    # Mostly the task's default weight; the plain decoder and the full correction must work too.
    eighth = max(1, args.batch // 8)
    weights = {0.0: slice(0, eighth), 1.0: slice(eighth, 2 * eighth), 0.5: slice(2 * eighth, None)}

    def draw(share: float) -> tuple[Tensor, ...]:
        rows = torch.randint(len(drawn), (args.batch,), device=device)
        target, image = (part[rows].float() / 127.5 - 1 for part in (targets, images))
        return target, image, drawn[rows].float() / initial.config.scaling_factor

    def loss(vae: Any, target: Tensor, image: Tensor, latents: Tensor) -> Tensor:
        with torch.no_grad():
            _, features = vae.encode(image.to(vae.dtype), return_features=True)
        parts = [
            vae.decode(latents[part].to(vae.dtype), features=[f[part] for f in features], fidelity_weight=weight).sample
            for weight, part in weights.items()
        ]
        output = adain_color_fix(torch.cat(parts).float(), image)
        return (
            functional.l1_loss(output, target)
            + args.mse * functional.mse_loss(output, target)
            + args.perceptual * perceptual(output, target).mean()
            + 0.1 * gradient_loss(output, target)
        )

    return Job(vae, draw, loss)


def unpacked(folder: Path) -> dict[str, nn.Module]:
    """What each stage trained, from a packed folder."""
    pipe = StableSRPipeline.from_pretrained(folder).to(torch.float32)
    model = nn.ModuleDict({"unet": pipe.unet, "structure_encoder": pipe.structure_encoder})
    return {"diffusion": model, "wrapping": pipe.vae}
