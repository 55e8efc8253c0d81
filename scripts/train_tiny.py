"""Train the embedded models: one command per model, any folder of photographs, two CPU cores or a whole GPU.

    python -m scripts.train_tiny vae --data PHOTOS      # autoencoder
    python -m scripts.train_tiny ip2p --data PHOTOS     # instruction edits: text encoder and U-Net
    python -m scripts.train_tiny base --data PHOTOS     # captions: text encoder and U-Net, from those of ip2p
    python -m scripts.train_tiny branch --data PHOTOS   # frozen base, control branch from canny edges
    python -m scripts.train_tiny inpaint --data PHOTOS          # from ip2p: the U-Net, mask and masked picture given
    python -m scripts.train_tiny high_frequency --data PHOTOS   # from ip2p: the U-Net, a restored picture given
    python -m scripts.train_tiny pack --task ip2p --out FOLDER   # write the pipeline folder of a task
    python -m scripts.train_tiny all --data PHOTOS --shares vae=2,ip2p=3,base=1,branch=2,diffusion=2,wrapping=1

Crops, edits, edge maps and latents are made while training, on the device. Everything but the packed folders lands
under --work. --seconds is a time budget, over which the learning rate falls; a command goes on from its checkpoint for
as much longer as it is asked to; `unpack` makes checkpoints of packed folders, and --init FOLDER starts from one. `all`
trains what its shares name, the restoration model of scripts/train_tiny_stablesr.py included, and packs each model into
--out when one of its stages ends; --warm compiles a model beside another training, which later trainings of it then use
where it was faster. Needs torch, diffusers, transformers, numpy and Pillow; only `branch` needs OpenCV, for the edge
maps. Figures on photographs outside the pool: scripts/eval_tiny.py.
"""

from __future__ import annotations

import argparse
import copy
import gc
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from idcompress.export.stock_form import save_pipeline
from idcompress.images.deblur import SIGMA_SHARE, restored
from idcompress.images.edits import EDITS, luma
from idcompress.images.masks import KINDS, draw_mask, masked
from idcompress.models.tiny.build import (
    LATENT_CHANNELS,
    TEXT_TOKENS,
    build_controlnet,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)
from scripts.tiny_common import (
    CROP_PX,
    Ema,
    Log,
    Photos,
    caption_rows,
    caption_texts,
    cosine_lr,
    data_note,
    hardware,
    list_photos,
    load_checkpoint,
    psnr,
    read_json,
    save_checkpoint,
    vocabulary,
    write_json,
)

CHECKPOINT_SECONDS = 60
HARD_SHARE = 0.6  # of the edited latents; an edit that moves content takes longer to learn
MIN_EDGES = 0.02  # share of edge pixels below which a crop says nothing to the control branch
POOL_CROPS = 24 * 1024  # whose latents are kept; on a CPU fewer, by --pool
BLOCK_CROPS = 1024  # that are replaced together
EDITS_PER_CROP = 4

STAGES = {
    "ip2p": ("ip2p",),
    "controlnet": ("base", "branch"),
    "inpaint": ("inpaint",),
    "high_frequency": ("high_frequency",),
}
EXTRA_CHANNELS = {"ip2p": LATENT_CHANNELS, "inpaint": 1 + LATENT_CHANNELS, "high_frequency": LATENT_CHANNELS}
MASKS = 2048  # that are drawn once, of each kind

_EMBEDDINGS = "embeddings.token_embedding.weight"  # of a text encoder
_OVERSHOOT_FROM = 0.6  # least noise level at which a sample may overshoot its edit


def device_of(name: str) -> torch.device:
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)


# --- the training loop ----------------------------------------------------------------------------------------------


@dataclass
class Job:
    """What is trained.

    Attributes:
        model: float32, trained where its parameters require gradients.
        draw: share of the budget spent -> a batch of tensors of fixed shapes; all chance is here.
        loss: (model, or its half-precision copy on a GPU; the batch) -> loss. The same arithmetic every time, so that a
            graph of it can be recorded and replayed.
        compiled: submodules worth compiling.
        report: called at the end with the averaged weights in place; its text is logged.
    """

    model: nn.Module
    draw: Callable[[float], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]
    compiled: tuple[str, ...] = ()
    report: Callable[[], str] | None = None


class Step:
    """One update: forward and backward in half precision on a GPU, AdamW on float32 weights, recorded as a CUDA graph.

    What a GPU does faster (bfloat16 copy, graph, compiled networks) falls away on a CPU, and a recording that fails
    leaves the plain update.
    """

    def __init__(self, job: Job, lr: float, device: torch.device, log: Callable[[str], None]) -> None:
        self.job, self.device, self.log = job, device, log
        self.on_gpu = device.type == "cuda"
        self.worker = copy.deepcopy(job.model).bfloat16() if self.on_gpu else job.model
        self.masters = [p for p in job.model.parameters() if p.requires_grad]
        self.copies = [p for p in self.worker.parameters() if p.requires_grad]
        self.lr = torch.tensor(lr, device=device) if self.on_gpu else lr
        options: dict[str, Any] = {"capturable": True} if self.on_gpu else {}
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=self.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True, **options
        )
        self.graph: Any = None
        self.batch: tuple[Tensor, ...] = ()
        self.loss = torch.zeros((), device=device)

    def compile(self) -> None:
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs plainly
        for name in self.job.compiled:
            self.worker.get_submodule(name).compile(dynamic=False)

    def set_lr(self, lr: float) -> None:
        if self.on_gpu:
            self.lr.fill_(lr)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = lr

    def load(self, optimizer: dict[str, Any]) -> None:
        """Go on from an optimizer's state, after the model's weights were loaded."""
        self.optimizer.load_state_dict(optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.copy_weights()

    @torch.no_grad()
    def copy_weights(self) -> None:
        if self.on_gpu:
            torch._foreach_copy_(self.copies, self.masters)

    def update(self) -> None:
        loss = self.job.loss(self.worker, *self.batch)
        loss.backward()
        if self.on_gpu:
            pairs = [(m, c) for m, c in zip(self.masters, self.copies, strict=True) if c.grad is not None]
            for master, _ in pairs:
                if master.grad is None:
                    master.grad = torch.zeros_like(master)
            torch._foreach_copy_([m.grad for m, _ in pairs], [c.grad for _, c in pairs])
        nn.utils.clip_grad_norm_(self.masters, 1.0, foreach=True)
        self.optimizer.step()
        self.copy_weights()
        for parameter in self.copies:
            parameter.grad = None
        self.loss.copy_(loss.detach())

    def __call__(self, share: float) -> None:
        batch = self.job.draw(share)
        if not self.on_gpu:
            self.batch = batch
            self.update()
        elif self.graph is None:
            self.batch = tuple(part.clone() for part in batch)
            self.record()
        else:
            for kept, part in zip(self.batch, batch, strict=True):
                kept.copy_(part)
            if self.graph:
                self.graph.replay()
            else:
                self.update()

    def record(self) -> None:
        """Three plain updates on a stream of their own, then the same one recorded."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.update()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.graph = False
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.update()
            self.graph = graph
        except Exception:
            self.log(f"no CUDA graph, plain updates instead: {traceback.format_exc(limit=-3)}")
            with suppress(Exception):
                torch.cuda.synchronize()
            for parameter in self.copies:
                parameter.grad = None


def fit(args: argparse.Namespace, job: Job) -> None:
    """Train a job for a time budget; resumable, with averaged weights.

    Args:
        args: command (the checkpoint's name), work, seed, seconds, lr, batch, device, init.
    """
    folder, device, log = Path(args.work), device_of(args.device), Log()
    model = job.model.to(device)
    state = load_checkpoint(folder / f"{args.command}.pt")
    steps = samples = 0
    seconds = 0.0
    if state:
        model.load_state_dict(state["model"])
        steps, samples, seconds = state["steps"], state["samples"], state["seconds"]
    torch.manual_seed(args.seed + steps)
    step, ema = Step(job, args.lr, device, log), Ema(model, args.ema)
    if state:
        if "optimizer" in state:
            step.load(state["optimizer"])
        ema.load_state_dict(state["ema"])
    budget, samples_before = seconds + args.seconds, samples
    warm = folder / f"{args.command}.compiled.json"
    if step.on_gpu and warm.exists() and read_json(warm)["gain"] > 1.1:
        step.compile()
        log(f"{args.command}: compiled, {read_json(warm)}")
    last = saved = began = time.perf_counter()
    done = False
    losses: list[float] = []
    while not done:
        # 1. One step.
        share = seconds / budget
        step.set_lr(cosine_lr(steps, share, args.lr, args.warmup))
        step(share)
        ema.update(model)
        steps += 1
        samples += args.batch
        # 2. Time; the processor must not run far ahead of a GPU.
        if step.on_gpu and steps % 8 == 0:
            torch.cuda.synchronize()
        now = time.perf_counter()
        seconds, last = seconds + now - last, now
        done = seconds >= budget
        if steps % args.log_every == 0 or done:
            losses.append(round(step.loss.item(), 4))
            rate = (samples - samples_before) / (now - began)
            log(f"{args.command} step {steps} samples {samples} loss {losses[-1]} {rate:.0f} samples/s")
        # 3. Checkpoint, at the end with a report on the averaged weights.
        if now - saved > CHECKPOINT_SECONDS or done:
            saved = now
            state = {
                "model": model.state_dict(),
                "optimizer": step.optimizer.state_dict(),
                "ema": ema.state_dict(),
                "steps": steps,
                "samples": samples,
                "seconds": seconds,
            }
            save_checkpoint(folder / f"{args.command}.pt", state)
            note = {
                "seed": args.seed,
                "steps": steps,
                "samples": samples,
                "batch": args.batch,
                "learning_rate": args.lr,
                "seconds": round(seconds),
                "samples_per_second": round((samples - samples_before) / (now - began)),
                "losses": losses,
                "hardware": hardware(device),
                "processes": 1,
                "started_from": args.init or "random weights",
            }
            write_json(folder / f"{args.command}.json", note)
    if job.report is not None:
        model.load_state_dict(ema.shadow)
        with torch.no_grad():
            log(f"{args.command} {job.report()}")


def warm(args: argparse.Namespace, job: Job) -> None:
    """Compile a job's networks, so that later processes find them in the cache, and time plain against compiled."""
    device, log = device_of(args.device), Log()
    job.model.to(device)
    batch = job.draw(0.0)
    took = {}
    for name in ("plain", "compiled"):
        step = Step(job, args.lr, device, log)
        step.batch = batch
        began = time.perf_counter()
        if name == "compiled":
            step.compile()
        for _ in range(3):
            step.update()
        if step.on_gpu:
            torch.cuda.synchronize()
        first = time.perf_counter() - began
        if step.on_gpu:
            step.record()
        began = time.perf_counter()
        for _ in range(8):
            step.graph.replay() if step.graph else step.update()
        if step.on_gpu:
            torch.cuda.synchronize()
        took[name] = (time.perf_counter() - began) / 8
        del step
    result = {"gain": took["plain"] / took["compiled"], "compiling_seconds": first, "milliseconds": 1e3 * took["plain"]}
    write_json(Path(args.work) / f"{args.command}.compiled.json", result)
    log(f"{args.command}: compiling {result}")


def averaged(model: nn.Module, path: Path) -> nn.Module:
    """Load the averaged weights of a checkpoint, frozen."""
    state = load_checkpoint(path)
    if state is None:
        raise FileNotFoundError(f"no checkpoint {path}; run `{path.stem}` first")
    model.load_state_dict(state["ema"]["shadow"])
    return model.requires_grad_(False).eval()


def photos_of(args: argparse.Namespace, size: int | None = None) -> Photos:
    """The photographs on the device, and the note about them in --work."""
    photos = list_photos(Path(args.data), args.research)[: args.photos or None]
    write_json(Path(args.work) / "crops.json", data_note(photos, args.research))
    return Photos(photos, device_of(args.device), **({} if size is None else {"size": size}))


def edited(images: Tensor, edits: np.ndarray) -> Tensor:
    """Every image after its edit: (B, 3, H, W) in [0, 1], and (B,) positions in EDITS."""
    names, result = list(EDITS), images.clone()
    for edit in np.unique(edits):
        rows = torch.from_numpy(np.flatnonzero(edits == edit)).to(images.device)
        result[rows] = EDITS[names[edit]].apply(images[rows])
    return result


# --- autoencoder ----------------------------------------------------------------------------------------------------


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


# --- latents --------------------------------------------------------------------------------------------------------


class Pool:
    """Latents of crops on the device, of which a block is replaced now and then by new ones.

    Args:
        args: pool (crops), refresh (batches between two replacements), and what the photographs need.
        make: count -> tensors of a block, each with its own number of rows.
    """

    def __init__(self, args: argparse.Namespace, make: Callable[[int], dict[str, Tensor]]) -> None:
        self.make, self.refresh = make, args.refresh
        self.per_block = min(BLOCK_CROPS, args.pool)
        first = make(self.per_block)
        blocks = max(1, args.pool // self.per_block)
        self.parts = {name: part.new_empty(blocks, *part.shape) for name, part in first.items()}
        for block in range(blocks):
            self._put(block, make(self.per_block) if block else first)
        self.blocks, self.batches = blocks, 0

    def _put(self, block: int, made: dict[str, Tensor]) -> None:
        for name, part in made.items():
            self.parts[name][block] = part

    def rows(self, name: str, batch: int) -> tuple[Tensor, Tensor]:
        """Random blocks and rows of a part, (batch,) each; replaces a block when it is time."""
        if self.refresh and self.batches % self.refresh == self.refresh - 1:
            self._put(self.batches // self.refresh % self.blocks, self.make(self.per_block))
        self.batches += 1
        part = self.parts[name]
        return tuple(torch.randint(length, (batch,), device=part.device) for length in part.shape[:2])  # type: ignore[return-value]


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


# --- diffusion ------------------------------------------------------------------------------------------------------


class Noise:
    """Noised latents and their v on SD's schedule.

    Timesteps are 1000 times a uniform number to a power that rises from 0.6 to 1.1 over the budget: an instruction is
    learned where nearly all is noise, detail and what a picture already shows of its edit where little is.

    Source: Salimans and Ho, Progressive Distillation, arXiv:2202.00512, appendix D: v = alpha eps - sigma x_0.
    """

    def __init__(self, device: torch.device) -> None:
        self.signal = build_scheduler().alphas_cumprod.to(device).sqrt()

    def __call__(self, latents: Tensor, share: float, drift: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Sample, v and timesteps.

        Args:
            latents: scaled, float32.
            share: of the budget spent.
            drift: what is added to the latents in the sample but not in what v leads to: a sampler's error, which the
                model learns to take back; only at noise above _OVERSHOOT_FROM.
        """
        uniform = torch.rand(len(latents), device=latents.device)
        timesteps = (1000 * uniform ** (0.6 + 0.5 * share)).long().clamp_max(999)
        signal = self.signal[timesteps].view(-1, 1, 1, 1)
        level = (1 - signal.square()).sqrt()
        noise = torch.randn_like(latents)
        sample, v = signal * latents + level * noise, signal * noise - level * latents
        if drift is not None:
            drift = drift * (level > _OVERSHOOT_FROM)
            sample, v = sample + signal * drift, v + signal.square() / level * drift
        return sample, v, timesteps


def v_loss(output: Tensor, v: Tensor) -> Tensor:
    return functional.mse_loss(output.float(), v)


def tokens_of(tokenizer: Any, texts: list[str], device: torch.device) -> Tensor:
    ids: Tensor = tokenizer(
        texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids.to(device)


def text_of(text_encoder: CLIPTextModel, tokens: Tensor, rows: Tensor) -> Tensor:
    """Embeddings (B, tokens, width) of the prompts at some rows of a table, each of which is encoded once."""
    table = text_encoder(tokens)[0]
    return functional.embedding(rows, table.flatten(1)).unflatten(1, (TEXT_TOKENS, -1))


def _start_from(init: str, tokenizer: Any, model: nn.ModuleDict) -> None:
    """Load text encoder and U-Net of a packed folder, whose tokenizer may be another and whose task ip2p."""
    text = CLIPTextModel.from_pretrained(init, subfolder="text_encoder").float().state_dict()
    before, after = CLIPTokenizer.from_pretrained(init, subfolder="tokenizer").get_vocab(), tokenizer.get_vocab()
    shared = sorted(before.keys() & after.keys())
    embeddings = model["text_encoder"].state_dict()[_EMBEDDINGS].clone()
    embeddings[[after[token] for token in shared]] = text[_EMBEDDINGS][[before[token] for token in shared]]
    model["text_encoder"].load_state_dict(text | {_EMBEDDINGS: embeddings})
    unet = UNet2DConditionModel.from_pretrained(init, subfolder="unet").float().state_dict()
    unet["conv_in.weight"] = unet["conv_in.weight"][:, : model["unet"].config.in_channels]
    model["unet"].load_state_dict(unet)


def text_and_unet(task: str, seed: int, init: str = "") -> tuple[Any, nn.ModuleDict]:
    """Tokenizer, and the text encoder and U-Net that are trained together."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(vocabulary())
    model = nn.ModuleDict(
        {
            "text_encoder": build_text_encoder(tokenizer),
            "unet": build_unet(LATENT_CHANNELS + EXTRA_CHANNELS.get(task, 0)),
        }
    )
    if init:
        _start_from(init, tokenizer, model)
    return tokenizer, model


def _hide(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    skips = tuple(skip * block.kept_skips for skip in kwargs["res_hidden_states_tuple"])
    return args, kwargs | {"res_hidden_states_tuple": skips}


def allow_hidden_skips(unet: UNet2DConditionModel) -> None:
    """Let `hide_skips` take the skips of the two upper levels from the decoder.

    What such a sample must still draw has to come through 8x8 latents and below: without this the deep levels idle, and
    edits that move content are learned slowly.
    """
    for block in unet.up_blocks[-2:]:
        block.register_forward_pre_hook(_hide, with_kwargs=True)


def hide_skips(unet: UNet2DConditionModel, kept: Tensor) -> None:
    """Set what the next call's skips are multiplied by, (B,): 0 hides them."""
    for block in unet.up_blocks[-2:]:
        block.kept_skips = kept.view(-1, 1, 1, 1).to(unet.dtype)


def kept_skips(timesteps: Tensor, rate: float, share: float) -> Tensor:
    """Hide with a probability that falls to zero at 70 % of the budget, where noise dominates."""
    hidden = torch.rand(timesteps.shape, device=timesteps.device) < rate * max(0.0, 1 - share / 0.7)
    return (~(hidden & (timesteps > 250))).float()


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


# --- packing --------------------------------------------------------------------------------------------------------


def build_pipeline(task: str, args: argparse.Namespace) -> DiffusionPipeline:
    """Assemble the stock pipeline of a task from the averaged weights of its checkpoints."""
    folder = Path(args.work)
    tokenizer, model = text_and_unet(task, 0)
    averaged(model, folder / f"{STAGES[task][0]}.pt")
    parts: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(folder / "vae"),
        "text_encoder": model["text_encoder"],
        "tokenizer": tokenizer,
        "unet": model["unet"],
        "scheduler": build_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    if task == "inpaint":
        return StableDiffusionInpaintPipeline(**parts)
    if task != "controlnet":
        return StableDiffusionInstructPix2PixPipeline(**parts)
    branch = nn.ModuleDict({"controlnet": build_controlnet(model["unet"]), "unet": build_unet(LATENT_CHANNELS)})
    parts["controlnet"] = averaged(branch, folder / "branch.pt")["controlnet"]
    return StableDiffusionControlNetPipeline(**parts)


def write_card(task: str, stages: tuple[str, ...], work: Path, folder: Path) -> None:
    """How a packed model was trained."""
    notes = {stage: read_json(work / f"{stage}.json") for stage in stages if (work / f"{stage}.json").exists()}
    write_json(folder / "model_card.json", {"task": task, "data": read_json(work / "crops.json"), "training": notes})


def run_pack(args: argparse.Namespace) -> None:
    """Write the pipeline folder of a task in half precision, and how it was trained."""
    folder = Path(args.out) / args.task
    save_pipeline(build_pipeline(args.task, args).to(torch.float16), folder)
    before = () if args.task in ("ip2p", "controlnet") else ("ip2p",)
    write_card(args.task, ("vae", *before, *STAGES[args.task]), Path(args.work), folder)


def run_unpack(args: argparse.Namespace) -> None:
    """Turn packed folders back into checkpoints, so that training goes on where nothing but they is left."""
    from scripts import train_tiny_stablesr

    work, init = Path(args.work), Path(args.init)

    def part(task: str, name: str, kind: Any) -> Any:
        return kind.from_pretrained(init / task, subfolder=name).float()

    def save(task: str, stage: str, model: nn.Module) -> None:
        note = read_json(init / task / "model_card.json")["training"][stage]
        weights = model.state_dict()
        counts = {"steps": note.get("steps", 1000), "samples": note["samples"], "seconds": float(note["seconds"])}
        ema = {"updates": 1000, "shadow": weights}
        save_checkpoint(work / f"{stage}.pt", {"model": weights, "ema": ema, **counts})
        write_json(work / f"{stage}.json", note)

    part("ip2p", "vae", AutoencoderKL).save_pretrained(work / "vae")
    write_json(work / "vae.json", read_json(init / "ip2p" / "model_card.json")["training"]["vae"])
    for task, stage in ((task, stages[0]) for task, stages in STAGES.items() if (init / task).is_dir()):
        parts = {"text_encoder": part(task, "text_encoder", CLIPTextModel)}
        save(task, stage, nn.ModuleDict(parts | {"unet": part(task, "unet", UNet2DConditionModel)}))
    branch = {"controlnet": part("controlnet", "controlnet", ControlNetModel)}
    save("controlnet", "branch", nn.ModuleDict(branch | {"unet": part("controlnet", "unet", UNet2DConditionModel)}))
    for stage, model in train_tiny_stablesr.unpacked(init / "stablesr").items():
        save("stablesr", stage, model)


# --- all in turn ----------------------------------------------------------------------------------------------------


def run_all(args: argparse.Namespace) -> None:
    """Train the stages that --shares names, each for its share of --seconds, and pack after each what can be packed.

    The last stage ends when the budget does, whatever starting the others took.
    """
    from scripts import train_tiny_stablesr

    log, end = Log(), time.perf_counter() + args.seconds
    shares = {name: float(value) for name, value in (part.split("=") for part in args.shares.split(","))}
    packs = {stages[-1]: task for task, stages in STAGES.items()} | {"diffusion": "stablesr", "wrapping": "stablesr"}
    common = ["--work", args.work, "--seed", str(args.seed), "--device", args.device, "--threads", str(args.threads)]
    for name, share in list(shares.items()):
        left = end - time.perf_counter()
        seconds = left * share / sum(shares.values())
        del shares[name]
        script = train_tiny_stablesr if name in ("diffusion", "wrapping") else None
        began = time.perf_counter()
        try:
            keys = [name, *common, *args.keys.split()]
            keys += [] if name == "wrapping" else ["--data", args.data, "--photos", str(args.photos)]
            keys += ["--lpips", args.lpips] if name == "wrapping" else []
            chosen = (script.parse if script else parse)(keys)
            chosen.seconds, chosen.starting_counts = seconds, True
            chosen.run(chosen)
            if name in packs:
                task = packs[name]
                packing = ["pack", *common, "--out", args.out]
                packing += [] if task == "stablesr" else ["--task", task]
                chosen = (train_tiny_stablesr.parse if task == "stablesr" else parse)(packing)
                chosen.run(chosen)
        except Exception:
            log(f"{name} failed:\n{traceback.format_exc()}")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log(f"{name}: {time.perf_counter() - began:.0f} s of {seconds:.0f}")


# --- command line ---------------------------------------------------------------------------------------------------


def train(job_of: Callable[[argparse.Namespace], Job], args: argparse.Namespace) -> None:
    began = time.perf_counter()
    if args.warm:
        warm(args, job_of(args))
        return
    job = job_of(args)
    if getattr(args, "starting_counts", False):
        args.seconds = max(1.0, args.seconds - (time.perf_counter() - began))
    fit(args, job)


def common_keys(command: argparse.ArgumentParser, **defaults: Any) -> argparse.ArgumentParser:
    """Keys that every command has, and some with their defaults."""
    command.add_argument("--work", default=".work/tiny", help="folder of checkpoints")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", default="auto")
    command.add_argument("--threads", type=int, default=1, help="CPU threads")
    for key, value in defaults.items():
        command.add_argument(f"--{key.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    return command


def training_keys(command: argparse.ArgumentParser, **defaults: Any) -> argparse.ArgumentParser:
    """Keys of a training."""
    pool = {"pool": POOL_CROPS, "refresh": 50} if torch.cuda.is_available() else {"pool": 2048, "refresh": 0}
    defaults = (
        {"seconds": 3600.0, "lr": 1e-3, "ema": 0.998, "warmup": 200, "log_every": 100, "init": ""} | pool | defaults
    )
    common_keys(command, **defaults)
    command.add_argument("--warm", action="store_true", help="only compile, for later trainings, and time it")
    return command


def data_keys(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Keys of whatever reads photographs."""
    command.add_argument("--data", required=True, help="folder of photographs")
    command.add_argument("--photos", type=int, default=0, help="take only the first ones")
    command.add_argument("--research", action="store_true", help="also photographs whose licence is for research only")
    return command


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    on_gpu = torch.cuda.is_available()
    size = {"batch": 512, "lr": 2e-3} if on_gpu else {"batch": 16}

    def add(name: str, job_of: Callable[[argparse.Namespace], Job], **defaults: Any) -> None:
        command = data_keys(training_keys(commands.add_parser(name, help=job_of.__doc__), **defaults))
        command.set_defaults(run=partial(train, job_of))
        if name == "vae":
            command.add_argument(
                "--decoder-only", action="store_true", help="keep the encoder, and with it all latents"
            )

    add("vae", vae_job, batch=256 if on_gpu else 16, lr=2e-3, kl=1e-5, l1=0.02, latent_noise=0.4)
    add("ip2p", ip2p_job, **size, skip_dropout=0.15, text_dropout=0.2, overshoot=3.0)
    add("base", base_job, **size)
    add("branch", branch_job, **size, refresh=0)
    add("inpaint", inpaint_job, **size, skip_dropout=0.15)
    add("high_frequency", high_frequency_job, **size, skip_dropout=0.15)
    pack = common_keys(commands.add_parser("pack", help=run_pack.__doc__), out="idcompress/models/tiny")
    pack.add_argument("--task", required=True, choices=tuple(STAGES))
    pack.set_defaults(run=run_pack)
    unpack = common_keys(commands.add_parser("unpack", help=run_unpack.__doc__), init="idcompress/models/tiny")
    unpack.set_defaults(run=run_unpack)
    everything = data_keys(common_keys(commands.add_parser("all", help=run_all.__doc__), seconds=3600.0, out="tiny"))
    everything.add_argument("--shares", default="vae=2,ip2p=3,base=1,branch=2,diffusion=2,wrapping=1")
    everything.add_argument("--lpips", default="", help="for `wrapping`: SqueezeNet weights of torchvision")
    everything.add_argument("--keys", default="", help="more keys for every training, in one string")
    everything.set_defaults(run=run_all)
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    args.run(args)


if __name__ == "__main__":
    main()
