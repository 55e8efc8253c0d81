"""What the trainings of diffusion models share: latents, noise, text, and skips that are hidden."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from idcompress.models.tiny.build import (
    LATENT_CHANNELS,
    TEXT_TOKENS,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
)

from .photos import vocabulary

BLOCK_CROPS = 1024  # that are replaced together
EXTRA_CHANNELS = {"ip2p": LATENT_CHANNELS, "inpaint": 1 + LATENT_CHANNELS, "high_frequency": LATENT_CHANNELS}
_EMBEDDINGS = "embeddings.token_embedding.weight"  # of a text encoder
_OVERSHOOT_FROM = 0.6  # least noise level at which a sample may overshoot its edit


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
