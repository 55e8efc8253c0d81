"""Train the embedded model of task=stablesr, starting from the weights of the other two embedded models.

    python -m scripts.train_tiny_stablesr pairs --data PHOTOS --shard 0   # crops, degraded inputs and their latents
    python -m scripts.train_tiny_stablesr diffusion                       # U-Net and structure encoder together
    python -m scripts.train_tiny_stablesr samples                         # latents that the model draws of some pairs
    python -m scripts.train_tiny_stablesr wrapping --lpips SQUEEZENET     # decoder and feature wrapping on those
    python -m scripts.train_tiny_stablesr pack                            # the pipeline folder, into the package

Shards of pairs may be written while `diffusion` trains; it takes them up as they come. What holds for
scripts/train_tiny.py (resuming, budgets, what lands where) holds here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from idcompress.core.ddim import ddim_sample
from idcompress.core.timestep_search import gamma_timesteps
from idcompress.export.stock_form import save_pipeline
from idcompress.images.degrade import degrade
from idcompress.metrics import lpips
from idcompress.models.stablesr import EmptyPromptEmbedding, StableSRPipeline, adain_color_fix
from idcompress.models.tiny.build import (
    STABLESR_PX,
    VAE_FACTOR,
    build_scheduler,
    build_stablesr_unet,
    build_stablesr_vae,
    build_structure_encoder,
    freeze_silent_attentions,
)
from scripts.tiny_common import Log, as_image, cut_crops, data_digest, list_photos, read_json, write_json
from scripts.train_tiny import Diffusion, SkipDropout, averaged, device_of, fit, gradient_loss

REFRESH_STEPS = 200  # between two looks for new shards of pairs
_WINDOW_PX = STABLESR_PX // VAE_FACTOR


def enlarge(low: Tensor) -> Tensor:
    """Inputs (B, 3, h, w) in [0, 1] to four times their size, as task=stablesr enlarges them."""
    enlarged = functional.interpolate(low, scale_factor=4, mode="bicubic", align_corners=False)
    return enlarged.clamp(0, 1)


# --- pairs ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def run_pairs(args: argparse.Namespace) -> None:
    """Cut 128x128 crops, degrade each once and encode both sides."""
    folder, log = Path(args.work), Log()
    photos = list_photos(Path(args.data))
    crops, _ = cut_crops(photos, args.count, args.seed + args.shard, STABLESR_PX)
    vae = AutoencoderKL.from_pretrained(args.init_vae, subfolder="vae").float()
    lows, latents, image_latents = [], [], []
    for start in range(0, args.count, 16):
        target = as_image(crops[start : start + 16])
        seeds = range((args.seed + args.shard) * args.count + start, (args.seed + args.shard) * args.count + start + 16)
        low = degrade(target, [torch.Generator().manual_seed(seed) for seed in seeds])
        means = vae.encode(torch.cat([target, enlarge(low)]) * 2 - 1).latent_dist.mode()
        lows.append(low.half().numpy())
        latents.append(means[:16].half().numpy())
        image_latents.append(means[16:].half().numpy())
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"unfinished_{args.shard}.npz"
    np.savez(
        temporary,
        target=crops,
        low=np.concatenate(lows),
        latents=np.concatenate(latents),
        image_latents=np.concatenate(image_latents),
    )
    temporary.rename(folder / f"pairs_{args.shard:02d}.npz")
    licences: dict[str, int] = {}
    for photo in photos:
        licences[photo.licence] = licences.get(photo.licence, 0) + 1
    write_json(
        folder / "crops.json",
        {
            "photographs": len(photos),
            "licences": licences,
            "crops": args.count * len(list(folder.glob("pairs_*.npz"))),
            "crop_px": STABLESR_PX,
            "seed": args.seed,
            "data_digest": data_digest(photos),
            "research_use": False,
        },
    )
    log(f"shard {args.shard}: {args.count} pairs")


class Pairs:
    """The arrays of all shards; the first 256 pairs are kept out of training."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder, self.names = folder, names
        self.arrays: dict[str, list[Tensor]] = {name: [] for name in names}
        self.read: set[Path] = set()
        self.refresh()

    def refresh(self) -> None:
        for path in sorted(set(self.folder.glob("pairs_*.npz")) - self.read):
            with np.load(path) as shard:
                for name in self.names:
                    self.arrays[name].append(torch.from_numpy(shard[name]))
            self.read.add(path)
        if not self.read:
            raise FileNotFoundError(f"no pairs in {self.folder}; run `pairs` first")
        for name in self.names:
            joined = torch.cat(self.arrays[name])
            self.arrays[name] = [joined]

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name][0]


# --- diffusion ------------------------------------------------------------------------------------------------------


def build_diffusion() -> nn.ModuleDict:
    return nn.ModuleDict({"unet": build_stablesr_unet(), "structure_encoder": build_structure_encoder()})


def empty_prompt(folder: str) -> EmptyPromptEmbedding:
    """What the text encoder of a packed pipeline makes of the empty prompt."""
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").float()
    ids = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    with torch.no_grad():
        return EmptyPromptEmbedding.from_tensor(text_encoder(ids).last_hidden_state[0])


def run_diffusion(args: argparse.Namespace) -> None:
    """Train U-Net and structure encoder on windows of the cached latents; the prior comes from --init."""
    folder, device = Path(args.work), device_of(args.device)
    pairs, diffusion = Pairs(folder, "latents", "image_latents"), Diffusion(device)
    scale = AutoencoderKL.load_config(args.init_vae, subfolder="vae")["scaling_factor"]
    torch.manual_seed(args.seed)
    model = build_diffusion().to(device)
    unet = model["unet"]
    prior = UNet2DConditionModel.from_pretrained(args.init, subfolder="unet").float().state_dict()
    missing, unexpected = unet.load_state_dict(prior, strict=False)
    if unexpected or not all(".spade." in name for name in missing):
        raise ValueError(f"{args.init} has another U-Net: {unexpected or missing}")
    freeze_silent_attentions(unet)
    skips = SkipDropout(unet)
    text = empty_prompt(args.init)().to(device)
    draws = 0

    def loss_of(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        nonlocal draws
        draws += 1
        if draws % REFRESH_STEPS == 0:
            pairs.refresh()
        rows = torch.from_numpy(rng.integers(256, len(pairs["latents"]), args.batch))
        top, left = rng.integers(0, _WINDOW_PX - args.window + 1, 2)
        window = (rows, slice(None), slice(top, top + args.window), slice(left, left + args.window))
        latents, image_latents = (pairs[name][window].float().to(device) * scale for name in pairs.names)

        def predict(sample: Tensor, timesteps: Tensor) -> Tensor:
            features = model["structure_encoder"](image_latents, timesteps)
            skips.draw(timesteps, args.skip_dropout, generator)
            return unet(sample, timesteps, text.expand(args.batch, -1, -1), structure_features=features).sample

        return diffusion(latents, predict, generator)

    fit(args, model, loss_of)


# --- feature wrapping -----------------------------------------------------------------------------------------------


def build_pipeline(args: argparse.Namespace) -> StableSRPipeline:
    """Assemble the pipeline from the averaged weights of the checkpoints; before `wrapping`, with the first decoder."""
    folder = Path(args.work)
    model = averaged(build_diffusion(), folder / "diffusion.pt")
    vae = build_stablesr_vae()
    if (folder / "wrapping.pt").exists():
        averaged(vae, folder / "wrapping.pt")
    else:
        vae.load_state_dict(_initial_vae(args).state_dict(), strict=False)
    vae.register_to_config(scaling_factor=_initial_vae(args).config.scaling_factor)
    pipe = StableSRPipeline(
        vae.eval(), model["unet"], model["structure_encoder"], build_scheduler(), empty_prompt(args.init)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _initial_vae(args: argparse.Namespace) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(args.init_vae, subfolder="vae").float()


@torch.no_grad()
def run_samples(args: argparse.Namespace) -> None:
    """Draw latents for windows of some pairs, half of them by deterministic, half by ancestral sampling."""
    folder, log = Path(args.work), Log()
    pairs, pipe = Pairs(folder, "target", "low"), build_pipeline(args)
    rng, generator = np.random.default_rng(args.seed), torch.Generator().manual_seed(args.seed)
    rows = rng.permutation(np.arange(256, len(pairs["low"])))[: args.count]
    side = args.window * VAE_FACTOR
    found: dict[str, list[Tensor]] = {"target": [], "image": [], "latents": []}
    for start in range(0, len(rows), args.batch):
        chosen = torch.from_numpy(rows[start : start + args.batch])
        top, left = rng.integers(0, _WINDOW_PX - args.window + 1, 2) * VAE_FACTOR
        window = (..., slice(top, top + side), slice(left, left + side))
        image = enlarge(pairs["low"][chosen].float())[window] * 2 - 1
        image_latents, _ = pipe.encode_image(image, generator)
        latents = ddim_sample(
            pipe.denoiser(image_latents, pipe.encode_prompt(len(chosen))),
            torch.randn(image_latents.shape, generator=generator),
            gamma_timesteps(1.0, args.steps),
            pipe.scheduler.alphas_cumprod,
            eta=start // args.batch % 2,
            generator=generator,
            prediction_type=pipe.scheduler.config.prediction_type,
        )
        found["target"].append(pairs["target"][chosen].permute(0, 3, 1, 2)[window])
        found["image"].append(image.half())
        found["latents"].append(latents.half())
        if start % 128 == 0:
            log(f"{start + len(chosen)} samples")
    np.savez(folder / "samples.npz", **{name: torch.cat(parts).numpy() for name, parts in found.items()})


def run_wrapping(args: argparse.Namespace) -> None:
    """Train feature wrapping and decoder on drawn latents; the encoder, and with it every latent, stays."""
    folder = Path(args.work)
    with np.load(folder / "samples.npz") as file:
        samples = {name: torch.from_numpy(file[name]) for name in file.files}
    torch.manual_seed(args.seed)
    vae = build_stablesr_vae()
    initial = _initial_vae(args)
    vae.load_state_dict(initial.state_dict(), strict=False)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    perceptual = lpips.Metric(net="squeeze", weights=args.lpips).model.requires_grad_(False)

    def loss_of(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows = torch.from_numpy(rng.integers(0, len(samples["latents"]), args.batch))
        target, image, latents = (samples[name][rows].float() for name in ("target", "image", "latents"))
        target = target / 127.5 - 1
        with torch.no_grad():
            _, features = vae.encode(image, return_features=True)
        # Mostly the task's default weight; the plain decoder and the full correction must work too.
        weight = rng.choice([0.0, 0.5, 1.0], p=[0.15, 0.7, 0.15])
        output = vae.decode(latents / initial.config.scaling_factor, features=features, fidelity_weight=weight).sample
        output = adain_color_fix(output, image)
        return (
            functional.l1_loss(output, target)
            + args.perceptual * perceptual(output, target).mean()
            + 0.1 * gradient_loss(output, target)
        )

    fit(args, vae, loss_of)


# --- packing --------------------------------------------------------------------------------------------------------


def run_pack(args: argparse.Namespace) -> None:
    """Write the pipeline folder in half precision, and how it was trained."""
    work, folder = Path(args.work), Path(args.out) / "stablesr"
    save_pipeline(build_pipeline(args).to(torch.float16), folder)
    card = {
        "task": "stablesr",
        "data": read_json(work / "crops.json"),
        "training": {stage: read_json(work / f"{stage}.json") for stage in ("diffusion", "wrapping")},
    }
    write_json(folder / "model_card.json", card)


# --- command line ---------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None], **defaults: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("--work", default=".work/stablesr", help="folder of pairs and checkpoints")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--device", default="auto")
        command.add_argument("--threads", type=int, default=1, help="CPU threads")
        command.add_argument("--init-vae", default="idcompress/models/tiny/ip2p", help="pipeline of the autoencoder")
        for key, value in defaults.items():
            command.add_argument(f"--{key.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
        return command

    pairs = add("pairs", run_pairs, shard=0, count=1024)
    pairs.add_argument("--data", required=True, help="folder of photographs")
    prior = "idcompress/models/tiny/controlnet"
    add("diffusion", run_diffusion, minutes=40.0, batch=16, lr=1e-3, window=16, skip_dropout=0.25, init=prior)
    add("samples", run_samples, count=768, batch=16, steps=10, window=16, init=prior)
    wrapping = add("wrapping", run_wrapping, minutes=20.0, batch=8, lr=5e-4, perceptual=0.5, init=prior)
    wrapping.add_argument("--lpips", default="", help="SqueezeNet weights of torchvision; default: see IDC_WEIGHTS")
    add("pack", run_pack, out="idcompress/models/tiny", init=prior)
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
