"""Train the embedded models: one command per model, any folder of photographs.

    python -m scripts.train_tiny crops --data PHOTOS    # once: 64x64 crops
    python -m scripts.train_tiny vae                    # autoencoder
    python -m scripts.train_tiny latents                # once per autoencoder: latents of crops and edits
    python -m scripts.train_tiny ip2p                   # instruction edits: text encoder and U-Net
    python -m scripts.train_tiny base                   # captions: text encoder and U-Net
    python -m scripts.train_tiny branch                 # frozen base, control branch from canny edges
    python -m scripts.train_tiny pack --task ip2p       # write the pipeline folder of a task into the package

Everything but the packed folders lands under --work, and a command resumes where its checkpoint is. --minutes is a time
budget, over which the learning rate falls; --init FOLDER starts from the weights of a packed folder (for the base that
of ip2p saves hours); --time-power 1 trains on uniform timesteps, below 1 on high ones more often. `torchrun` runs any
training command on several processes. Needs torch, diffusers, transformers, numpy and Pillow; only `latents` needs
OpenCV, for the edge maps. Figures on photographs outside the pool: scripts/eval_tiny.py.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed
import torch.nn.functional as functional
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from idcompress.export.stock_form import save_pipeline
from idcompress.images.captions import caption
from idcompress.images.edits import EDITS, luma
from idcompress.models.tiny.build import (
    LATENT_CHANNELS,
    build_controlnet,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
    freeze_silent_attentions,
)
from scripts.tiny_common import (
    Ema,
    Log,
    as_image,
    cosine_lr,
    cut_crops,
    data_digest,
    hardware,
    list_photos,
    load_checkpoint,
    psnr,
    read_json,
    save_checkpoint,
    vocabulary,
    write_json,
)

CHECKPOINT_SECONDS = 150
MIN_CONTRAST = 0.05  # standard deviation of luma below which a crop is too flat to show an edit
MIN_EDGES = 0.02  # share of edge pixels below which a crop says nothing to the control branch
HARD_SHARE = 0.5  # of the edited latents; an edit that moves content takes longer to learn

_STAGES = {"ip2p": ("ip2p",), "controlnet": ("base", "branch")}

_RANK, _WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
_EMBEDDINGS = "embeddings.token_embedding.weight"  # of a text encoder
_SKIP_DROPOUT_FROM = 250  # training timestep; SD's schedule has as much signal as noise near 340

Loss = Callable[[np.random.Generator, torch.Generator], Tensor]


def device_of(name: str) -> torch.device:
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)


def fit(args: argparse.Namespace, model: nn.Module, loss_of: Loss, report: Callable[[], str] | None = None) -> None:
    """Train a model for a time budget; resumable, with EMA.

    Args:
        args: command (the checkpoint's name), work, seed, minutes, lr, batch, device.
        model: trained where its parameters require gradients.
        loss_of: draws a batch from a numpy and a torch generator and returns its loss.
        report: called at every checkpoint with the averaged weights in place; its text is logged.
    """
    if _WORLD > 1:
        distributed.init_process_group("gloo")
    folder, device, log = Path(args.work), device_of(args.device), Log()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    ema = Ema(model, 0.998)
    step, samples, seconds = 0, 0, 0.0
    if state := load_checkpoint(folder / f"{args.command}.pt"):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        step, samples, seconds = state["step"], state["samples"], state["seconds"]
    rng = np.random.default_rng([args.seed, _RANK, step])
    generator = torch.Generator(device).manual_seed(args.seed + 1000 * _RANK + step)
    last = saved = time.perf_counter()
    done, losses = False, []
    while not done:
        # 1. Learning rate over the time budget.
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(step, seconds / (60 * args.minutes), args.lr)
        # 2. One step, with gradients averaged over processes.
        loss = loss_of(rng, generator)
        loss.backward()
        if _WORLD > 1:
            gradients = [p.grad for p in parameters if p.grad is not None]  # norms before silent attentions get none
            flat = torch.cat([grad.flatten() for grad in gradients])
            distributed.all_reduce(flat)
            flat /= _WORLD
            for grad, mean in zip(gradients, flat.split([grad.numel() for grad in gradients]), strict=True):
                grad.copy_(mean.view_as(grad))
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)
        step += 1
        samples += args.batch * _WORLD
        losses.append(loss.item())
        if _RANK == 0 and step % 100 == 0:
            log(f"{args.command} step {step} samples {samples} loss {np.mean(losses[-100:]):.4f}")
        # 3. Time, checkpoint, report.
        now = time.perf_counter()
        seconds, last = seconds + now - last, now
        done = seconds >= 60 * args.minutes
        if _WORLD > 1:  # the first process to run out of time stops all
            stop = torch.tensor(float(done))
            distributed.all_reduce(stop)
            done = stop.item() > 0
        if _RANK == 0 and (now - saved > CHECKPOINT_SECONDS or done):
            saved = now
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema.state_dict(),
                "step": step,
                "samples": samples,
                "seconds": seconds,
            }
            save_checkpoint(folder / f"{args.command}.pt", state)
            note = {
                "seed": args.seed,
                "steps": step,
                "samples": samples,
                "batch": args.batch * _WORLD,
                "learning_rate": args.lr,
                "seconds": round(seconds),
                "hardware": hardware(device),
                "processes": _WORLD,
                "started_from": args.init or "random weights",
            }
            write_json(folder / f"{args.command}.json", note)
            if report is not None:
                trained = {name: value.clone() for name, value in model.state_dict().items()}
                model.load_state_dict(ema.shadow)
                with torch.no_grad():
                    log(f"{args.command} step {step} {report()}")
                model.load_state_dict(trained)
    if _WORLD > 1:
        distributed.destroy_process_group()


# --- crops ----------------------------------------------------------------------------------------------------------


def run_crops(args: argparse.Namespace) -> None:
    """Cut the crops of the training photographs once."""
    photos = list_photos(Path(args.data), args.research)
    crops, photo_index = cut_crops(photos, args.count, args.seed, min_share=args.min_share)
    folder = Path(args.work)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "crops.npy", crops)
    np.save(folder / "crops_photo.npy", photo_index)
    licences: dict[str, int] = {}
    for photo in photos:
        licences[photo.licence] = licences.get(photo.licence, 0) + 1
    write_json(
        folder / "crops.json",
        {
            "photographs": len(photos),
            "licences": licences,
            "crops": args.count,
            "seed": args.seed,
            "data_digest": data_digest(photos),
            "research_use": args.research,
        },
    )


def edited(images: Tensor, edits: np.ndarray) -> Tensor:
    """Every image after its edit: (B, 3, H, W) in [0, 1], and (B,) positions in EDITS."""
    names, result = list(EDITS), images.clone()
    for edit in np.unique(edits):
        rows = torch.from_numpy(np.flatnonzero(edits == edit))
        result[rows] = EDITS[names[edit]].apply(images[rows])
    return result


# --- autoencoder ----------------------------------------------------------------------------------------------------


def _vae_batch(crops: np.ndarray, rows: np.ndarray, size: int, window: int, rng: np.random.Generator) -> Tensor:
    """Windows of some crops in [0, 1], a quarter of them edited: inverted and tinted pictures are drawn too."""
    image = as_image(crops[rng.choice(rows, size)])
    top, left = rng.integers(0, image.shape[-1] - window + 1, 2)
    image = image[..., top : top + window, left : left + window]
    image[: size // 4] = edited(image[: size // 4], rng.integers(len(EDITS), size=size // 4))
    return image


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


def run_vae(args: argparse.Namespace) -> None:
    """Train the autoencoder; with --decoder-only the latents stay what they are."""
    folder, device = Path(args.work), device_of(args.device)
    crops = np.load(folder / "crops.npy", mmap_mode="r")
    held_out = as_image(crops[:256]).to(device)  # crops not trained on, from the same photographs
    detail = np.abs(np.diff(crops[256:, ::2, ::2, 1].astype(np.int16), axis=2)).mean((1, 2))
    detailed = 256 + np.flatnonzero(detail >= np.quantile(detail, args.flat_share))
    torch.manual_seed(args.seed)
    if args.decoder_only:
        args.command = "vae_decoder"
        vae = trained_vae(folder)
        vae.decoder.requires_grad_(True)
        vae.post_quant_conv.requires_grad_(True)
    else:
        vae = AutoencoderKL.from_pretrained(args.init, subfolder="vae") if args.init else build_vae()
    vae.to(device)

    def loss_of(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        image = _vae_batch(crops, detailed, args.batch, args.window, rng).to(device) * 2 - 1
        posterior = vae.encode(image).latent_dist
        output = vae.decode(posterior.sample(generator)).sample
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return (
            functional.mse_loss(output, image)
            + 0.1 * functional.l1_loss(output, image)
            + 0.05 * gradient_loss(output, image)
            + args.kl * kl
        )

    def report() -> str:
        latents = vae.encode(held_out * 2 - 1).latent_dist.mode()
        value = psnr(vae.decode(latents).sample / 2 + 0.5, held_out).mean().item()
        return f"crops not trained on {value:.2f} dB, latent std {latents.std().item():.3f}"

    fit(args, vae, loss_of, report)
    if _RANK == 0:
        averaged(vae, folder / f"{args.command}.pt")
        if not args.decoder_only:
            balance_channels(vae, held_out * 2 - 1)
        vae.save_pretrained(folder / "vae")


def trained_vae(folder: Path) -> AutoencoderKL:
    """The autoencoder that `vae` has trained, frozen."""
    if not (folder / "vae").is_dir():
        raise FileNotFoundError(f"no folder {folder / 'vae'}; run `vae` first")
    return AutoencoderKL.from_pretrained(folder / "vae").requires_grad_(False).eval()


# --- latents --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def run_latents(args: argparse.Namespace) -> None:
    """Encode crops and edited crops once, cut their edge maps and write their captions."""
    from idcompress.images.canny import canny

    folder, device, log = Path(args.work), device_of(args.device), Log()
    crops = np.load(folder / "crops.npy", mmap_mode="r")
    vae = trained_vae(folder).to(device)
    hard = np.array([edit.hard for edit in EDITS.values()])
    weights = np.where(hard, HARD_SHARE / hard.sum(), (1 - HARD_SHARE) / (~hard).sum())
    rng = np.random.default_rng([args.seed, args.shard])
    inputs, targets, edit_index, edges, captions = [], [], [], [], []
    for start in range(256 + 64 * args.shard, len(crops) - 63, 64 * args.shards):
        image = as_image(crops[start : start + 64]).to(device)
        image = image[luma(image).flatten(1).std(1) > MIN_CONTRAST]
        chosen = np.stack([rng.choice(len(hard), args.edits, replace=False, p=weights) for _ in image])
        results = edited(image.repeat_interleave(args.edits, dim=0), chosen.ravel())
        latents = vae.encode(torch.cat([image, results]) * 2 - 1).latent_dist.mode()
        inputs.append(latents[: len(image)].half().cpu().numpy())
        targets.append(latents[len(image) :].half().cpu().numpy().reshape(len(image), args.edits, *latents.shape[1:]))
        edit_index.append(chosen.astype(np.int16))
        edges.append(np.packbits(canny(image)[:, 0].cpu().numpy().astype(bool), axis=-1))
        captions += [caption(picture) for picture in image.cpu()]
        if len(inputs) == args.batches:
            break
    np.savez(
        folder / f"latents_{args.shard}.npz",
        inputs=np.concatenate(inputs),
        targets=np.concatenate(targets),
        edit_index=np.concatenate(edit_index),
        edges=np.concatenate(edges),
        captions=np.array(captions),
    )
    log(f"{len(captions)} crops, {args.edits} edits each")


def averaged(model: nn.Module, path: Path) -> nn.Module:
    """Load the averaged weights of a checkpoint, frozen."""
    state = load_checkpoint(path)
    if state is None:
        raise FileNotFoundError(f"no checkpoint {path}; run `{path.stem}` first")
    model.load_state_dict(state["ema"]["shadow"])
    return model.requires_grad_(False).eval()


class Latents:
    """The cached latents of all shards, as tensors; edge maps stay packed."""

    def __init__(self, folder: Path) -> None:
        shards = [np.load(path) for path in sorted(folder.glob("latents_*.npz"))]
        if not shards:
            raise FileNotFoundError(f"no latents in {folder}; run `latents` first")

        def joined(name: str) -> np.ndarray:
            return np.concatenate([shard[name] for shard in shards])

        self.scaling_factor: float = AutoencoderKL.load_config(folder / "vae")["scaling_factor"]
        self.inputs, self.targets = torch.from_numpy(joined("inputs")), torch.from_numpy(joined("targets"))
        self.edit_index, self.edges = joined("edit_index"), joined("edges")
        self.captions: list[str] = joined("captions").tolist()


# --- diffusion ------------------------------------------------------------------------------------------------------


class Diffusion:
    """The v-prediction objective on SD's schedule.

    Args:
        device: of the latents.
        power: timesteps are 1000 times a uniform number to this power. At 1 they are uniform; at 0.5 half of them are
            above 707, where nearly all is noise and an instruction decides what is drawn.

    Source: Salimans and Ho, Progressive Distillation, arXiv:2202.00512, appendix D: v = alpha eps - sigma x_0.
    """

    def __init__(self, device: torch.device, power: float = 1.0) -> None:
        self.scheduler = build_scheduler()
        self.device = device
        self.power = power

    def __call__(
        self, latents: Tensor, predict: Callable[[Tensor, Tensor], Tensor], generator: torch.Generator
    ) -> Tensor:
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        uniform = torch.rand(len(latents), generator=generator, device=self.device)
        timesteps = (1000 * uniform**self.power).long().clamp_max(999)
        sample = self.scheduler.add_noise(latents, noise, timesteps)
        return functional.mse_loss(predict(sample, timesteps), self.scheduler.get_velocity(latents, noise, timesteps))


def _in_channels(task: str) -> int:
    return (2 if task == "ip2p" else 1) * LATENT_CHANNELS


def _tokens(tokenizer: Any, texts: list[str]) -> Tensor:
    ids: Tensor = tokenizer(
        texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def _start_from(init: str, tokenizer: Any, model: nn.ModuleDict) -> None:
    """Load text encoder and U-Net of a packed folder, whose tokenizer may be another and whose task ip2p."""
    text = CLIPTextModel.from_pretrained(init, subfolder="text_encoder").float().state_dict()
    before, after = CLIPTokenizer.from_pretrained(init, subfolder="tokenizer").get_vocab(), tokenizer.get_vocab()
    shared = sorted(before.keys() & after.keys())
    embeddings = model["text_encoder"].state_dict()[_EMBEDDINGS].clone()
    embeddings[[after[token] for token in shared]] = text[_EMBEDDINGS][[before[token] for token in shared]]
    model["text_encoder"].load_state_dict(text | {_EMBEDDINGS: embeddings})
    unet = UNet2DConditionModel.from_pretrained(init, subfolder="unet").state_dict()
    unet["conv_in.weight"] = unet["conv_in.weight"][:, : model["unet"].config.in_channels]
    model["unet"].load_state_dict(unet)


def _text_and_unet(task: str, seed: int, init: str, device: torch.device) -> tuple[Any, nn.ModuleDict]:
    """Tokenizer, and the text encoder and U-Net that are trained together."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(vocabulary())
    model = nn.ModuleDict({"text_encoder": build_text_encoder(tokenizer), "unet": build_unet(_in_channels(task))})
    if init:
        _start_from(init, tokenizer, model)
    freeze_silent_attentions(model["unet"])
    return tokenizer, model.to(device)


class SkipDropout:
    """Hides the skips of the two upper levels from the decoder for some samples of a batch.

    What those samples must still draw has to come through 4x4 and below: without this the deep levels idle (PSNR of
    depth 6 to the full model was 59 dB after 25 000 samples), and edits that move content are learned slowly.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.keep: Tensor | None = None
        for block in unet.up_blocks[-2:]:
            block.register_forward_pre_hook(self._mask, with_kwargs=True)

    def _mask(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if self.keep is None:
            return args, kwargs
        skips = tuple(skip * self.keep for skip in kwargs["res_hidden_states_tuple"])
        return args, kwargs | {"res_hidden_states_tuple": skips}

    def draw(self, timesteps: Tensor, rate: float, generator: torch.Generator) -> None:
        """Hide with probability `rate` where noise dominates; at lower noise the skips carry what must be kept."""
        hidden = torch.rand(timesteps.shape, generator=generator, device=timesteps.device) < rate
        self.keep = (~(hidden & (timesteps > _SKIP_DROPOUT_FROM))).float().view(-1, 1, 1, 1)


def run_ip2p(args: argparse.Namespace) -> None:
    """Train the instruction editor: text encoder and U-Net together."""
    folder, device = Path(args.work), device_of(args.device)
    data, diffusion = Latents(folder), Diffusion(device, args.time_power)
    tokenizer, model = _text_and_unet("ip2p", args.seed, args.init, device)
    skips = SkipDropout(model["unet"])
    phrasings = [edit.phrasings for edit in EDITS.values()]
    first = np.cumsum([0, *(len(p) for p in phrasings)])
    tokens = _tokens(tokenizer, [text for group in phrasings for text in group] + [""]).to(device)

    def loss_of(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows = rng.integers(0, len(data.inputs), args.batch)
        which = rng.integers(0, data.edit_index.shape[1], args.batch)
        edits = data.edit_index[rows, which]
        prompts = first[edits] + (rng.random(args.batch) * (first[edits + 1] - first[edits])).astype(int)
        # InstructPix2Pix, Sec. 3.2.1: 5 % without text, 5 % without image, 5 % without both, exclusively.
        drop = rng.random(args.batch)
        prompts[(drop < 0.05) | ((drop >= 0.10) & (drop < 0.15))] = len(tokens) - 1
        keep_image = torch.from_numpy((drop < 0.05) | (drop >= 0.15)).float().view(-1, 1, 1, 1).to(device)
        image_latents = data.inputs[rows].float().to(device) * keep_image
        latents = data.targets[rows, which].float().to(device) * data.scaling_factor
        text = model["text_encoder"](tokens[torch.from_numpy(prompts)])[0]

        def predict(sample: Tensor, timesteps: Tensor) -> Tensor:
            stacked = torch.cat([sample, image_latents], dim=1)
            skips.draw(timesteps, args.skip_dropout, generator)
            return model["unet"](stacked, timesteps, text).sample

        return diffusion(latents, predict, generator)

    fit(args, model, loss_of)


def run_base(args: argparse.Namespace) -> None:
    """Train the text-conditional base on captions: text encoder and U-Net together."""
    folder, device = Path(args.work), device_of(args.device)
    data, diffusion = Latents(folder), Diffusion(device, args.time_power)
    tokenizer, model = _text_and_unet("controlnet", args.seed, args.init, device)
    tokens = _tokens(tokenizer, [*data.captions, ""]).to(device)

    def loss_of(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows = rng.integers(0, len(data.inputs), args.batch)
        prompts = np.where(rng.random(args.batch) < 0.1, len(tokens) - 1, rows)
        latents = data.inputs[rows].float().to(device) * data.scaling_factor
        text = model["text_encoder"](tokens[torch.from_numpy(prompts)])[0]
        return diffusion(latents, lambda sample, t: model["unet"](sample, t, text).sample, generator)

    fit(args, model, loss_of)


def run_branch(args: argparse.Namespace) -> None:
    """Train the control branch on canny edges, the base frozen."""
    folder, device = Path(args.work), device_of(args.device)
    data, diffusion = Latents(folder), Diffusion(device, args.time_power)
    tokenizer, base = _text_and_unet("controlnet", args.seed, "", device)
    averaged(base, folder / "base.pt")
    if args.init:
        controlnet = ControlNetModel.from_pretrained(args.init, subfolder="controlnet")
    else:
        controlnet = build_controlnet(base["unet"])
    controlnet.requires_grad_(True)
    freeze_silent_attentions(controlnet)
    model = nn.ModuleDict({"controlnet": controlnet}).to(device)
    edges = np.unpackbits(data.edges, axis=-1)
    usable = np.flatnonzero(edges.mean((1, 2)) > MIN_EDGES)
    tokens = _tokens(tokenizer, [*data.captions, ""]).to(device)

    def loss_of(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows = rng.choice(usable, args.batch)
        prompts = np.where(rng.random(args.batch) < 0.3, len(tokens) - 1, rows)
        latents = data.inputs[rows].float().to(device) * data.scaling_factor
        condition = torch.from_numpy(edges[rows]).float().to(device).unsqueeze(1).expand(-1, 3, -1, -1)
        with torch.no_grad():
            text = base["text_encoder"](tokens[torch.from_numpy(prompts)])[0]

        def predict(sample: Tensor, timesteps: Tensor) -> Tensor:
            down, middle = controlnet(sample, timesteps, text, condition, return_dict=False)
            return base["unet"](
                sample, timesteps, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample

        return diffusion(latents, predict, generator)

    fit(args, model, loss_of)


# --- packing --------------------------------------------------------------------------------------------------------


def build_pipeline(task: str, folder: Path) -> DiffusionPipeline:
    """Assemble the stock pipeline of a task from the averaged weights of its checkpoints."""
    tokenizer = build_tokenizer(vocabulary())
    model = nn.ModuleDict({"text_encoder": build_text_encoder(tokenizer), "unet": build_unet(_in_channels(task))})
    averaged(model, folder / f"{'ip2p' if task == 'ip2p' else 'base'}.pt")
    parts: dict[str, Any] = {
        "vae": trained_vae(folder),
        "text_encoder": model["text_encoder"],
        "tokenizer": tokenizer,
        "unet": model["unet"],
        "scheduler": build_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    if task == "ip2p":
        return StableDiffusionInstructPix2PixPipeline(**parts)
    branch = nn.ModuleDict({"controlnet": build_controlnet(model["unet"])})
    parts["controlnet"] = averaged(branch, folder / "branch.pt")["controlnet"]
    return StableDiffusionControlNetPipeline(**parts)


def run_pack(args: argparse.Namespace) -> None:
    """Write the pipeline folder of a task in half precision, and how it was trained."""
    work, folder = Path(args.work), Path(args.out) / args.task
    save_pipeline(build_pipeline(args.task, work).to(torch.float16), folder)
    stages = [stage for stage in ("vae", "vae_decoder", *_STAGES[args.task]) if (work / f"{stage}.json").exists()]
    card = {
        "task": args.task,
        "data": read_json(work / "crops.json"),
        "training": {stage: read_json(work / f"{stage}.json") for stage in stages},
    }
    write_json(folder / "model_card.json", card)


# --- command line ---------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None], **defaults: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("--work", default=".work/tiny", help="folder of crops, caches and checkpoints")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--device", default="auto")
        command.add_argument("--threads", type=int, default=1, help="CPU threads")
        for key, value in defaults.items():
            command.add_argument(f"--{key.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
        return command

    crops = add("crops", run_crops, count=24000, min_share=0.35)
    crops.add_argument("--data", required=True, help="folder of photographs")
    crops.add_argument("--research", action="store_true", help="also photographs whose licence is for research only")
    vae = add("vae", run_vae, minutes=20.0, batch=16, lr=2e-3, kl=1e-5, init="", flat_share=0.3, window=64)
    vae.add_argument("--decoder-only", action="store_true", help="keep the encoder, and with it all cached latents")
    add("latents", run_latents, shard=0, shards=1, edits=4, batches=1000)
    add("ip2p", run_ip2p, minutes=60.0, batch=16, lr=1e-3, init="", skip_dropout=0.1, time_power=0.5)
    add("base", run_base, minutes=25.0, batch=16, lr=1e-3, init="", time_power=1.0)
    add("branch", run_branch, minutes=40.0, batch=16, lr=1e-3, init="", time_power=1.0)
    pack = add("pack", run_pack, out="idcompress/models/tiny")
    pack.add_argument("--task", required=True, choices=tuple(_STAGES))
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
