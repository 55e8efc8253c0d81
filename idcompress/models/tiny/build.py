"""Architecture of the embedded models: Stable Diffusion 1.5 in small, from stock diffusers and transformers classes.

Four levels of two layers give the 13 depths of SD 1.5; widths keep its ratio 1:2:4:4 and the way its norm groups
straddle the skip connections.

Why these sizes. On crops of 64 pixels the best linear code of 4x4 pixels keeps 29.4 dB of public photographs with
eight numbers, 32.3 with twelve, and an autoencoder that sees beyond its block gains a little. A U-Net whose stem is
narrower than the noisy and the given latents together cannot pass them on: twelve and twelve want a width of 24.
The two upper levels attend to the text alone: content then changes place only at 4x4 latents and below, which is what
makes depth matter. 128 pixels cost four times as much of everything, and three minutes on one GPU were too short for
them (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..stablesr import StableSRAutoencoderKL, StableSRStructureEncoder, StableSRUNet2DConditionModel

IMAGE_PX = 64
STABLESR_PX = 128
VAE_FACTOR = 4
LATENT_CHANNELS = 12  # for 48 numbers of 4x4 pixels
TEXT_WIDTH = 64
TEXT_TOKENS = 16  # every phrasing and caption fits; SD's 77 would make cross-attention the largest cost here
_CHANNELS = (24, 48, 96, 96)
_STRUCTURE_CHANNELS = 16
_DOWN_BLOCKS = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
_UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
_UNET: dict[str, Any] = {
    "out_channels": LATENT_CHANNELS,
    "layers_per_block": 2,
    "block_out_channels": _CHANNELS,
    "down_block_types": _DOWN_BLOCKS,
    "up_block_types": _UP_BLOCKS,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": (3, 6, 12, 12),  # diffusers' name for the number of heads in SD 1.x configurations
    "only_cross_attention": (True, True, False, False),  # the first attention of a block: to the text, or among pixels
    "norm_num_groups": 8,
}
_VAE: dict[str, Any] = {
    "latent_channels": LATENT_CHANNELS,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
}


def build_vae() -> AutoencoderKL:
    """Autoencoder from 64x64 pixels to (12, 16, 16) latents, without attention so that any size works."""
    return AutoencoderKL(sample_size=IMAGE_PX, **_VAE)


def build_unet(in_channels: int) -> UNet2DConditionModel:
    """U-Net with 12 skips and a middle block; `in_channels` counts what lies beside the latents, too."""
    unet = UNet2DConditionModel(sample_size=IMAGE_PX // VAE_FACTOR, in_channels=in_channels, **_UNET)
    for attention in silent_attentions(unet):
        nn.init.zeros_(attention.to_out[0].weight)
        nn.init.zeros_(attention.to_out[0].bias)
    return unet


def build_stablesr_vae() -> StableSRAutoencoderKL:
    """The same autoencoder with feature wrapping at its coarsest level, whose pixels are the input's own."""
    return StableSRAutoencoderKL(fusion_levels=(2,), fusion_growth_channels=8, sample_size=STABLESR_PX, **_VAE)


def build_stablesr_unet() -> StableSRUNet2DConditionModel:
    """The text-conditional U-Net with narrow SPADE layers."""
    return StableSRUNet2DConditionModel(
        sample_size=STABLESR_PX // VAE_FACTOR,
        in_channels=LATENT_CHANNELS,
        structure_channels=_STRUCTURE_CHANNELS,
        spade_hidden_channels=8,
        **_UNET,
    )


def build_structure_encoder() -> StableSRStructureEncoder:
    """Structure encoder without attention but in its middle block."""
    return StableSRStructureEncoder(
        in_channels=LATENT_CHANNELS,
        out_channels=_STRUCTURE_CHANNELS,
        block_out_channels=(24, 24, 48, 48),
        down_block_types=("DownBlock2D",) * 4,
        attention_head_dim=(12, 12, 12, 12),
        norm_num_groups=8,
    )


def silent_attentions(model: nn.Module) -> list[Any]:
    """First attentions of the two upper levels of a U-Net or control branch; they begin at zero.

    Were they among pixels, all context would travel at the finest levels and the deep ones idle, as trials showed.
    """
    names = ("down_blocks.0.", "down_blocks.1.", "up_blocks.2.", "up_blocks.3.")
    return [module for name, module in model.named_modules() if name.startswith(names) and name.endswith(".attn1")]


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Control branch with the weights of the base's encoder half; its stem divides pixels by the VAE's factor."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64), conditioning_channels=3)


def build_tokenizer(texts: Iterable[str]) -> CLIPTokenizer:
    """Tokenizer with one token per word of `texts`; every other word falls back to pieces of these and its bytes."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate((*alphabet, *(piece + "</w>" for piece in alphabet)))}
    merges: list[tuple[str, str]] = []
    for word in sorted({word for text in texts for word in text.lower().split()}):
        # A new pair ranks last, so that the words before stay whole; theirs may come first in this one.
        while len(parts := BPE(vocabulary, merges, end_of_word_suffix="</w>").tokenize(word)) > 1:
            left, right = parts[0].value, parts[1].value
            merges.append((left, right))
            vocabulary[left + right] = len(vocabulary)
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two-layer CLIP text model, 64 wide."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with v-prediction, which trains many times faster at this size."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
