"""Stand-ins for the published weights: their architecture and layout on disk, with random numbers in them.

    python -m scripts.full_size ip2p FOLDER                     float16 weights, 512 px: 2.1 GB in half a minute
    python -m scripts.full_size controlnet FOLDER --image-px 128    the same networks, used at 128 px
    python -m scripts.full_size stablesr FOLDER                 original checkpoints for idc convert
    python -m scripts.full_size metrics FOLDER                  CLIP, the aesthetic head, the trunk of LPIPS
    python -m scripts.full_size ip2p FOLDER --small             a thousandth of the size, the same files and keys

Weights are normal with mean 0 and the variance of 1 / fan-in, so that activations stay in float16's range; norms are
the identity. Pictures are noise, but time, memory, files and every check on them are the published models'. Nothing is
held in float32, and one network at a time in memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn

from idcompress.metrics.clip_aesthetic import HEAD_FILE
from idcompress.models import official
from idcompress.models.stablesr import (
    PUBLISHED_CONFIG,
    StableSRAutoencoderKL,
    StableSRStructureEncoder,
    StableSRUNet2DConditionModel,
    convert,
)

TASKS = ("ip2p", "controlnet", "stablesr")
TEXT_TOKENS = 77
FULL_PX, SMALL_PX = 512, 64
# What --small changes of each network's published configuration. Levels, layers and kinds of blocks stay.
_SMALL: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [16, 32, 64, 64],
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    },
    "controlnet": {
        "block_out_channels": [16, 32, 64, 64],
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "conditioning_embedding_out_channels": [4, 4, 8, 16],
    },
    "vae": {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4},
    "text_encoder": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
}
_SMALL_STABLESR: dict[str, dict[str, Any]] = {
    "unet": {"model_channels": 64, "num_head_channels": 16, "context_dim": 64, "semb_channels": 64},
    "structcond": {"model_channels": 64, "out_channels": 64},
    "vae": {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1},
}
_PIPELINES = {"ip2p": "StableDiffusionInstructPix2PixPipeline", "controlnet": "StableDiffusionControlNetPipeline"}
_SCHEDULERS = {"ip2p": "EulerAncestralDiscreteScheduler", "controlnet": "PNDMScheduler"}  # as published
_SMALL_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": TEXT_TOKENS, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def random_state(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Random float16 weights for a model on the meta device; integers, as counters in norms, are 0."""
    return {name: _drawn(name, tensor, generator) for name, tensor in model.state_dict().items()}


def _drawn(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    kind = name.rpartition(".")[2]
    if not like.is_floating_point() or kind in ("bias", "in_proj_bias", "running_mean"):
        return torch.zeros(like.shape, dtype=torch.float16 if like.is_floating_point() else like.dtype)
    if like.ndim < 2 and kind != "class_embedding":
        return torch.ones(like.shape, dtype=torch.float16)
    fan_in = like.numel() // like.shape[0]
    std = (0.3 if name.endswith("conv_out.weight") else 1.0) * fan_in**-0.5  # pictures and noise that are not all white
    return torch.empty(like.shape, dtype=torch.float16).normal_(std=std, generator=generator)


def write_pipeline(task: str, folder: Path, *, small: bool, image_px: int, seed: int = 0) -> Path:
    """A pipeline folder of ip2p or controlnet with the files of the published one.

    Args:
        image_px: side of the pictures that the U-Net says it was trained on.

    Returns:
        The folder, for model.path.
    """
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    sides = {"unet": image_px // 8, "vae": image_px}
    components: dict[str, tuple[str, str]] = {}
    for name, published in official.architectures(task).items():
        config = published | (_SMALL[name] if small else {})
        if name in sides:
            config["sample_size"] = sides[name]
        with torch.device("meta"):
            model: Any = official.build(config)
        model.load_state_dict(random_state(model, generator), assign=True)
        model.save_pretrained(folder / name)
        components[name] = ("transformers" if name == "text_encoder" else "diffusers", config["_class_name"])
    scheduler = getattr(diffusers, _SCHEDULERS[task])
    scheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1).save_pretrained(
        folder / "scheduler"
    )
    _write_tokenizer(folder / "tokenizer")
    components |= {
        "scheduler": ("diffusers", _SCHEDULERS[task]),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        # Named by the published index, and never loaded by this program.
        "safety_checker": ("stable_diffusion", "StableDiffusionSafetyChecker"),
        "feature_extractor": ("transformers", "CLIPImageProcessor"),
    }
    index = {"_class_name": _PIPELINES[task], "_diffusers_version": diffusers.__version__}
    _write_json(folder / "model_index.json", index | dict(sorted(components.items())))
    return folder


def _write_tokenizer(folder: Path) -> None:
    """CLIP's own files and counts: 256 bytes, each also at the end of a word, 48,894 merges, begin and end.

    The merges are of letters in the order of the alphabet, since the published ones are nobody's to give away here.
    """
    alphabet = sorted(ByteLevel.alphabet())
    merges = list(itertools.islice(_merges(), 49408 - 2 * len(alphabet) - 2))
    begin, end = "<|startoftext|>", "<|endoftext|>"
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *(one + other for one, other in merges), begin, end]
    folder.mkdir(exist_ok=True)
    _write_json(folder / "vocab.json", {word: number for number, word in enumerate(words)})
    lines = "\n".join(f"{one} {other}" for one, other in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}\n", encoding="utf-8")
    special = {"bos_token": begin, "eos_token": end, "pad_token": end, "unk_token": end}
    _write_json(folder / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TEXT_TOKENS, "do_lower_case": True}
    _write_json(folder / "tokenizer_config.json", special | settings)


def _merges() -> Iterator[tuple[str, str]]:
    letters = string.ascii_lowercase
    pairs = ["".join(pair) for pair in itertools.product(letters, repeat=2)]
    for end in ("", "</w>"):
        yield from ((one, other + end) for one, other in pairs)
    for end in ("</w>", ""):
        yield from ((pair, letter + end) for pair in pairs for letter in letters)
    yield from itertools.product(pairs, (pair + "</w>" for pair in pairs))


# StableSR -------------------------------------------------------------------------------------------------------------


def stablesr_config(*, small: bool, image_px: int) -> dict[str, Any]:
    """The original constructor arguments, as `convert.config` takes them."""
    changes = _SMALL_STABLESR if small else {}
    sections = {name: PUBLISHED_CONFIG[name] | changes.get(name, {}) for name in ("unet", "structcond", "vae")}
    return PUBLISHED_CONFIG | sections | {"image_size": image_px}


def write_checkpoints(folder: Path, *, small: bool, image_px: int, seed: int = 0) -> dict[str, Path]:
    """StableSR's two original checkpoints, in float16, with the text tower that the published one has.

    Returns:
        The files, by their names under `convert`.
    """
    generator = torch.Generator().manual_seed(seed)
    config = stablesr_config(small=small, image_px=image_px)
    folder.mkdir(parents=True, exist_ok=True)
    main: dict[str, Tensor] = {key: torch.zeros(1000) for key in sorted(convert.DROPPED_MAIN_KEYS)}
    with torch.device("meta"):
        unet: Any = StableSRUNet2DConditionModel(**convert.unet_config(config))
        encoder: Any = StableSRStructureEncoder(**convert.structure_encoder_config(config))
        vae: Any = StableSRAutoencoderKL(**convert.autoencoder_config(config))
    for prefix, model, names in (
        (convert.UNET_PREFIX, unet, convert.unet_names(unet)),
        (convert.STRUCTURE_PREFIX, encoder, convert.structure_encoder_names(encoder)),
    ):
        weights = original_names(random_state(model, generator), names)
        main |= {prefix + key: tensor for key, tensor in weights.items()}
    autoencoder = original_names(random_state(vae, generator), convert.autoencoder_names(vae))
    main |= {convert.AUTOENCODER_PREFIX + key: t for key, t in autoencoder.items() if "fusion" not in key}
    tower = _text_tower(config["unet"]["context_dim"], 2 if small else 24, generator)
    main |= {convert.TEXT_PREFIX + key: tensor for key, tensor in tower.items()}
    files = {"main_ckpt": folder / "stablesr.ckpt", "cfw_ckpt": folder / "vqgan_cfw.ckpt"}
    torch.save({"state_dict": main, "global_step": 16500}, files["main_ckpt"])
    torch.save({"state_dict": autoencoder}, files["cfw_ckpt"])
    _write_json(folder / "config.json", config)
    return files | {"config": folder / "config.json"}


def original_names(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """A state dict of ours in original names: the inverse of the conversion's renaming.

    Args:
        names: original module -> ours.
    """
    theirs = {ours: original for original, ours in names.items()}
    weights: dict[str, Tensor] = {}
    fused: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        head, _, last = module.rpartition(".")
        if last in ("to_q", "to_k", "to_v") and f"{head}.qkv" in theirs:
            fused.setdefault(f"{theirs[f'{head}.qkv']}.{kind}", []).append(tensor)
            continue
        while module not in theirs:
            module = module.rpartition(".")[0]
        weights[theirs[module] + name[len(module) :]] = tensor
    for key, parts in fused.items():  # random rows are of any head
        joined = torch.cat(parts)
        weights[key] = joined[..., None] if joined.ndim == 2 else joined
    return weights


def _text_tower(width: int, layers: int, generator: torch.Generator) -> dict[str, Tensor]:
    """OpenCLIP's text tower by its own names, as Stable Diffusion 2 holds it."""
    with torch.device("meta"):
        layer = nn.ModuleDict(
            {
                "ln_1": nn.LayerNorm(width),
                "attn": nn.MultiheadAttention(width, width // 64),
                "ln_2": nn.LayerNorm(width),
                "mlp": nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}),
            }
        )
        tower = nn.ModuleDict(
            {
                "token_embedding": nn.Embedding(49408, width),
                "transformer": nn.ModuleDict({"resblocks": nn.ModuleList([layer] * layers)}),
                "ln_final": nn.LayerNorm(width),
            }
        )
        tower.register_parameter("positional_embedding", nn.Parameter(torch.empty(TEXT_TOKENS, width)))
    return random_state(tower, generator)


# metrics --------------------------------------------------------------------------------------------------------------


def write_metrics(folder: Path, *, small: bool, seed: int = 0) -> Path:
    """Stand-ins for the weights of metrics: clip/ in open_clip's layout, the aesthetic head, the trunk of LPIPS.

    CLIP's are taken by metrics.clip_*.weights=FOLDER/clip. LPIPS refuses a trunk that is not the published one, and FID
    an Inception network: a test has to tell it the stand-in's digest.
    """
    import open_clip
    import torchvision

    generator = torch.Generator().manual_seed(seed)
    config = _SMALL_CLIP if small else open_clip.get_model_config("ViT-L-14")
    clip, width = folder / "clip", config["embed_dim"]
    clip.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    _write_json(clip / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocess})
    with torch.device("meta"):
        networks: list[Any] = [open_clip.CLIP(**json.loads(json.dumps(config)))]
        networks.append(torchvision.models.alexnet().features)
    _save(random_state(networks[0], generator), clip / "open_clip_model.safetensors")
    trunk = {f"features.{key}": tensor for key, tensor in random_state(networks[1], generator).items()}
    torch.save(trunk, folder / "alexnet_features.pth")
    sizes = (width, 1024, 128, 64, 16, 1)
    with torch.device("meta"):
        numbers = zip((0, 2, 4, 6, 7), itertools.pairwise(sizes), strict=True)
        head = nn.ModuleDict({"layers": nn.ModuleDict({str(n): nn.Linear(*pair) for n, pair in numbers})})
    torch.save(random_state(head, generator), folder / HEAD_FILE)
    return folder


def _save(state: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, path, metadata={"format": "pt"})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=(*TASKS, "metrics"))
    parser.add_argument("folder", type=Path, help="to write, new or empty")
    parser.add_argument("--small", action="store_true", help="the same layout with networks of a few channels")
    parser.add_argument("--image-px", type=int, help=f"side of the pictures [{FULL_PX}; with --small {SMALL_PX}]")
    arguments = parser.parse_args(argv)
    folder, small = arguments.folder, arguments.small
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        parser.error(f"{folder} exists and is not an empty folder")
    image_px = arguments.image_px or (SMALL_PX if small else FULL_PX)
    if image_px % 64:
        parser.error(f"--image-px must be a multiple of 64, got {image_px}")
    if arguments.what == "metrics":
        write_metrics(folder, small=small)
        print(f"metrics.clip_similarity.weights={folder / 'clip'} metrics.clip_aesthetic.head={folder / HEAD_FILE}")
    elif arguments.what == "stablesr":
        files = write_checkpoints(folder, small=small, image_px=image_px)
        keys = " ".join(f"convert.{name}={path}" for name, path in files.items())
        print(f"idc convert task=stablesr {keys} output.path=FOLDER")
    else:
        write_pipeline(arguments.what, folder, small=small, image_px=image_px)
        print(f"task={arguments.what} model=official model.path={folder}")


if __name__ == "__main__":
    main()
