"""Train the embedded models: one command per model, any folder of photographs, two CPU cores or a whole GPU.

    python -m scripts.train_tiny vae --data PHOTOS      # autoencoder
    python -m scripts.train_tiny ip2p --data PHOTOS     # instruction edits: text encoder and U-Net
    python -m scripts.train_tiny base --data PHOTOS     # captions: text encoder and U-Net, from those of ip2p
    python -m scripts.train_tiny branch --data PHOTOS   # frozen base, control branch from canny edges
    python -m scripts.train_tiny inpaint --data PHOTOS          # from ip2p: the U-Net, mask and masked picture given
    python -m scripts.train_tiny high_frequency --data PHOTOS   # from ip2p: the U-Net, a restored picture given
    python -m scripts.train_tiny pairs --data PHOTOS --shard 0 --shards 6   # for stablesr: crops and degraded inputs
    python -m scripts.train_tiny diffusion --data PHOTOS        # stablesr: U-Net and structure encoder, from base
    python -m scripts.train_tiny wrapping --lpips SQUEEZENET    # stablesr: decoder and feature wrapping
    python -m scripts.train_tiny pack --task ip2p --out FOLDER  # write the pipeline folder of a task
    python -m scripts.train_tiny all --data PHOTOS --shares vae=2,ip2p=3,base=1,branch=2,diffusion=2,wrapping=1

Crops, edits, edge maps and latents are made while training, on the device. Everything but the packed folders lands
under --work. --seconds is a time budget, over which the learning rate falls; a command goes on from its checkpoint for
as much longer as it is asked to; `unpack` makes checkpoints of packed folders, and --init FOLDER starts from one. `all`
trains what its shares name, and packs each model into --out when one of its stages ends; --warm compiles a model beside
another training, which later trainings of it then use where it was faster. Needs torch, diffusers, transformers, numpy
and Pillow; only `branch` needs OpenCV, for the edge maps. scripts/eval_tiny.py finds the figures on other photographs.
"""

from __future__ import annotations

import argparse
import gc
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from scripts.tiny.autoencoder import vae_job
from scripts.tiny.controlnet import base_job, branch_job
from scripts.tiny.files import Log
from scripts.tiny.given import high_frequency_job, inpaint_job
from scripts.tiny.ip2p import ip2p_job
from scripts.tiny.loop import Job, train
from scripts.tiny.packing import STAGES, run_pack, run_unpack
from scripts.tiny.stablesr import diffusion_job, run_pairs, wrapping_job

POOL_CROPS = 24 * 1024  # whose latents are kept; on a CPU fewer, by --pool


def run_all(args: argparse.Namespace) -> None:
    """Train the stages that --shares names, each for its share of --seconds, and pack after each what can be packed.

    The last stage ends when the budget does, whatever starting the others took.
    """
    log, end = Log(), time.perf_counter() + args.seconds
    shares = {name: float(value) for name, value in (part.split("=") for part in args.shares.split(","))}
    packs = {stage: task for task, stages in STAGES.items() for stage in stages if stage != "base"}
    common = ["--work", args.work, "--seed", str(args.seed), "--device", args.device, "--threads", str(args.threads)]
    for name, share in list(shares.items()):
        left = end - time.perf_counter()
        seconds = left * share / sum(shares.values())
        del shares[name]
        began = time.perf_counter()
        try:
            source = (
                ["--lpips", args.lpips] if name == "wrapping" else ["--data", args.data, "--photos", str(args.photos)]
            )
            chosen = parse([name, *common, *args.keys.split(), *source])
            chosen.seconds, chosen.starting_counts = seconds, True
            chosen.run(chosen)
            if name in packs:
                chosen = parse(["pack", *common, "--out", args.out, "--task", packs[name]])
                chosen.run(chosen)
        except Exception:
            log(f"{name} failed:\n{traceback.format_exc()}")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log(f"{name}: {time.perf_counter() - began:.0f} s of {seconds:.0f}")


# --- command line ---------------------------------------------------------------------------------------------------


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

    def add(name: str, job_of: Callable[[argparse.Namespace], Job], **defaults: Any) -> argparse.ArgumentParser:
        command = training_keys(commands.add_parser(name, help=job_of.__doc__), **defaults)
        command.set_defaults(run=partial(train, job_of))
        return command

    vae = add("vae", vae_job, batch=256 if on_gpu else 16, lr=2e-3, kl=1e-5, l1=0.02, latent_noise=0.4)
    vae.add_argument("--decoder-only", action="store_true", help="keep the encoder, and with it all latents")
    of_photographs = [
        vae,
        add("ip2p", ip2p_job, **size, skip_dropout=0.15, text_dropout=0.2, overshoot=3.0),
        add("base", base_job, **size),
        add("branch", branch_job, **size, refresh=0),
        add("inpaint", inpaint_job, **size, skip_dropout=0.15),
        add("high_frequency", high_frequency_job, **size, skip_dropout=0.15),
        add("diffusion", diffusion_job, **size, skip_dropout=0.3),
    ]
    for command in of_photographs:
        data_keys(command)
    drawn = {"count": 4096, "sampling_batch": 512} if on_gpu else {"count": 768, "sampling_batch": 16}
    add("wrapping", wrapping_job, batch=64 if on_gpu else 8, perceptual=0.5, mse=1.0, steps=10, lpips="", **drawn)
    shards = {"shard": 0, "shards": 1, "rounds": 1, "count": 1024, "seconds": 3600.0}
    pairs = data_keys(common_keys(commands.add_parser("pairs", help=run_pairs.__doc__), **shards))
    pairs.set_defaults(run=run_pairs)
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
