"""From checkpoints to the pipeline folders of tasks, with how they were trained, and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextModel

from idcompress.export.stock_form import save_pipeline
from idcompress.models.tiny.build import LATENT_CHANNELS, build_controlnet, build_scheduler, build_unet

from . import stablesr
from .diffusion import text_and_unet
from .files import averaged, read_json, save_checkpoint, write_json

STAGES = {  # what is trained for a task alone
    "ip2p": ("ip2p",),
    "controlnet": ("base", "branch"),
    "inpaint": ("inpaint",),
    "high_frequency": ("high_frequency",),
    "stablesr": ("diffusion", "wrapping"),
}
BEFORE = {"inpaint": ("ip2p",), "high_frequency": ("ip2p",), "stablesr": ("ip2p", "base")}  # where that started from


def build_pipeline(task: str, folder: Path) -> DiffusionPipeline:
    """Assemble the stock pipeline of a task from the averaged weights of its checkpoints."""
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


def run_pack(args: argparse.Namespace) -> None:
    """Write the pipeline folder of a task in half precision, and how it was trained."""
    work, folder = Path(args.work), Path(args.out) / args.task
    pipe = stablesr.build_pipeline(work) if args.task == "stablesr" else build_pipeline(args.task, work)
    save_pipeline(pipe.to(torch.float16), folder)
    stages = ("vae", *BEFORE.get(args.task, ()), *STAGES[args.task])
    notes = {stage: read_json(work / f"{stage}.json") for stage in stages if (work / f"{stage}.json").exists()}
    card = {"task": args.task, "data": read_json(work / "crops.json"), "training": notes}
    write_json(folder / "model_card.json", card)


def run_unpack(args: argparse.Namespace) -> None:
    """Turn packed folders back into checkpoints, so that training goes on where nothing but they is left."""
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
    for task, stage in (
        (task, stages[0]) for task, stages in STAGES.items() if (init / task / "text_encoder").is_dir()
    ):
        parts = {"text_encoder": part(task, "text_encoder", CLIPTextModel)}
        save(task, stage, nn.ModuleDict(parts | {"unet": part(task, "unet", UNet2DConditionModel)}))
    branch = {"controlnet": part("controlnet", "controlnet", ControlNetModel)}
    save("controlnet", "branch", nn.ModuleDict(branch | {"unet": part("controlnet", "unet", UNet2DConditionModel)}))
    for stage, model in stablesr.unpacked(init / "stablesr").items():
        save("stablesr", stage, model)
