"""Random pipelines of Stable Diffusion's topology, for tests that need a network and no quality."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from idcompress.models.stablesr import (
    EmptyPromptEmbedding,
    StableSRAutoencoderKL,
    StableSRPipeline,
    StableSRStructureEncoder,
    StableSRUNet2DConditionModel,
)

WIDTHS = (16, 32, 64, 64)
UNET = {
    "sample_size": 8,
    "layers_per_block": 2,
    "block_out_channels": WIDTHS,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def unet(in_channels: int = 8, seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    return UNet2DConditionModel(in_channels=in_channels, out_channels=4, up_block_types=up, **UNET).eval()


def stablesr_pipeline(sample_size: int | None = 8, prediction_type: str = "epsilon") -> StableSRPipeline:
    """A random StableSR with an autoencoder of factor 8; `sample_size` is the least latent side it is used at."""
    torch.manual_seed(0)
    unet_ = StableSRUNet2DConditionModel(
        sample_size=sample_size,
        block_out_channels=(16, 16, 32, 32),
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=8,
        structure_channels=8,
        spade_hidden_channels=8,
    )
    structure_encoder = StableSRStructureEncoder(
        out_channels=8, block_out_channels=(16, 16, 16, 16), attention_head_dim=(8, 8, 8, 8), norm_num_groups=4
    )
    vae = StableSRAutoencoderKL(
        fusion_growth_channels=4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
    )
    scheduler = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, prediction_type=prediction_type)
    embedding = EmptyPromptEmbedding.from_tensor(torch.randn(5, 8))
    pipeline = StableSRPipeline(vae.eval(), unet_.eval(), structure_encoder.eval(), scheduler, embedding)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_pipeline(task: str, folder: Path) -> Path:
    """Write a random pipeline for a task as a diffusers folder: 32 px, stock classes; stablesr 64 px."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    if task == "stablesr":
        stablesr_pipeline().save_pretrained(folder)
        return folder
    vocabulary = [*map(chr, range(33, 127)), *(chr(c) + "</w>" for c in range(33, 127))]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    words = folder / "vocab.json"
    words.write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    merges = folder / "merges.txt"
    merges.write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(vocab=str(words), merges=str(merges), model_max_length=12)
    words.unlink(), merges.unlink()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=12,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )
    parts = {"vae": vae, "text_encoder": text, "tokenizer": tokenizer, "scheduler": scheduler}
    parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if task in ("ip2p", "high_frequency"):
        pipeline = StableDiffusionInstructPix2PixPipeline(unet=unet(8), **parts)
    elif task == "inpaint":
        pipeline = StableDiffusionInpaintPipeline(unet=unet(9), **parts)
    else:
        shape = {k: v for k, v in UNET.items() if k != "sample_size"}
        branch = ControlNetModel(in_channels=4, conditioning_embedding_out_channels=(4, 8, 16), **shape)
        for block in (*branch.controlnet_down_blocks, branch.controlnet_mid_block):
            torch.nn.init.normal_(block.weight, std=0.1)  # zero convolutions would make control silent
        pipeline = StableDiffusionControlNetPipeline(unet=unet(4), controlnet=branch, **parts)
    pipeline.save_pretrained(folder)
    return folder


def write_with_length(source: Path, folder: Path, length: int) -> Path:
    """Copy a pipeline folder with a noise schedule of `length` timesteps, which ends at about the same noise."""
    shutil.copytree(source, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    betas = {name: config[name] * config["num_train_timesteps"] / length for name in ("beta_start", "beta_end")}
    file.write_text(json.dumps({**config, **betas, "num_train_timesteps": length}))
    return folder
