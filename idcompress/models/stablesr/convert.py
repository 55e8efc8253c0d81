"""Original StableSR checkpoints -> a diffusers pipeline.

Every key of a checkpoint is renamed into a model of ours or is on a named list of keys to drop; anything else is an
error. Models are built without weights and take the tensors of the (memory-mapped) files as they are, so converting
never holds a second copy.
"""

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from .autoencoder import StableSRAutoencoderKL
from .pipeline import StableSRPipeline
from .prompt import EmptyPromptEmbedding, empty_prompt_by_encoder, empty_prompt_by_weights
from .structure_encoder import StableSRStructureEncoder
from .unet import StableSRUNet2DConditionModel

UNET_PREFIX = "model.diffusion_model."
STRUCTURE_PREFIX = "structcond_stage_model."
AUTOENCODER_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.model."

# Keys that carry nothing the pipeline needs: the noise schedule (rebuilt from its two end points), training losses,
# the degradation operators of old versions, and averages that the published configs never filled.
DROPPED_MAIN_KEYS = frozenset(
    (
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    )
)
DROPPED_MAIN_PREFIXES = ("model_ema.", "jpeger.", "usm_sharpener.")
DROPPED_CFW_PREFIXES = ("loss.",)
# Classes of the training framework that old checkpoints mention outside their tensors.
_INERT_MODULES = ("pytorch_lightning.", "lightning.", "omegaconf.")

# Constructor arguments of the published 512 model, as its configuration files spell them.
PUBLISHED_CONFIG: dict[str, Any] = {
    "image_size": 512,
    "unet": {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "attention_resolutions": [4, 2, 1],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 4, 4],
        "num_head_channels": 64,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "transformer_depth": 1,
        "context_dim": 1024,
        "legacy": False,
        "semb_channels": 256,
    },
    "structcond": {
        "in_channels": 4,
        "model_channels": 256,
        "out_channels": 256,
        "num_res_blocks": 2,
        "attention_resolutions": [4, 2, 1],
        "channel_mult": [1, 1, 2, 2],
        "num_heads": 4,
    },
    "vae": {
        "double_z": True,
        "z_channels": 4,
        "resolution": 512,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
    },
    "scale_factor": 0.18215,
    "linear_start": 0.00085,
    "linear_end": 0.012,
    "parameterization": "eps",
}

# Original arguments that change nothing here (None), or of which only one value has an equivalent.
_UNET_FIXED: dict[str, Any] = {
    "image_size": None,
    "use_checkpoint": None,
    "use_fp16": None,
    "legacy": False,
    "use_spatial_transformer": True,
    "num_heads_upsample": None,
    "dropout": 0,
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": None,
}
_STRUCTURE_FIXED: dict[str, Any] = {
    **{key: value for key, value in _UNET_FIXED.items() if key not in ("legacy", "use_spatial_transformer")},
    "use_new_attention_order": False,
}
_VAE_FIXED: dict[str, Any] = {"double_z": True, "attn_resolutions": [], "dropout": 0, "num_fuse_block": 2}

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "spade.param_free_norm": "spade.norm",
    "spade.mlp_shared.0": "spade.shared",
    "spade.mlp_gamma": "spade.gamma",
    "spade.mlp_beta": "spade.beta",
}
_STRUCTURE_ATTENTION = {"norm": "group_norm", "qkv": "qkv", "proj_out": "to_out.0"}
_VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
    "conv_out": "conv_shortcut",
}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def from_original(
    main_ckpt: str | Path,
    cfw_ckpt: str | Path,
    config: Mapping[str, Any] | str | Path | None = None,
    *,
    text_encoder: Any = None,
    tokenizer: Any = None,
) -> StableSRPipeline:
    """Build a pipeline from the two published files.

    Args:
        main_ckpt: diffusion model and structure encoder (`stablesr_*.ckpt`).
        cfw_ckpt: autoencoder with feature wrapping (`vqgan_cfw_*.ckpt`).
        config: original constructor arguments under "unet", "structcond" and "vae", and optionally "scale_factor",
            "linear_start", "linear_end", "parameterization" ("eps" or "v") and "image_size" (the least side, in
            pixels, that the model is used at; none if left out); or a JSON file of them. None for the published 512
            model.
        text_encoder, tokenizer: Stable Diffusion 2's, to encode the empty prompt by; they stay in the pipeline. Without
            them the text tower of main_ckpt encodes it; without that too, the pipeline asks for `prompt_embeds`.

    Returns:
        a pipeline whose weights are those of the files, in their dtype.

    Raises:
        ValueError: a key, a shape or a config argument that has no place here, or a missing one; the message names it.
    """
    config = _read_config(config)
    main, cfw = _load(main_ckpt), _load(cfw_ckpt)
    parts: dict[str, dict[str, Tensor]] = {
        prefix: {} for prefix in (UNET_PREFIX, STRUCTURE_PREFIX, AUTOENCODER_PREFIX, TEXT_PREFIX)
    }
    unknown = []
    for key, tensor in main.items():
        prefix = next((prefix for prefix in parts if key.startswith(prefix)), None)
        if prefix is not None:
            parts[prefix][key.removeprefix(prefix)] = tensor
        elif key not in DROPPED_MAIN_KEYS and not key.startswith(DROPPED_MAIN_PREFIXES):
            unknown.append(key)
    _refuse(unknown, f"keys of {Path(main_ckpt).name} that belong to no part of StableSR")
    cfw = {key: tensor for key, tensor in cfw.items() if not key.startswith(DROPPED_CFW_PREFIXES)}

    with torch.device("meta"):
        unet = StableSRUNet2DConditionModel(**unet_config(config))
        structure_encoder = StableSRStructureEncoder(**structure_encoder_config(config))
        vae = StableSRAutoencoderKL(**autoencoder_config(config))
    _fill(unet, parts[UNET_PREFIX], unet_names(unet), UNET_PREFIX)
    _fill(structure_encoder, parts[STRUCTURE_PREFIX], structure_encoder_names(structure_encoder), STRUCTURE_PREFIX)
    names = autoencoder_names(vae)
    # The main file repeats the frozen autoencoder; it must fit, but the other file's weights are the ones used.
    repeated = [AUTOENCODER_PREFIX + key for key in parts[AUTOENCODER_PREFIX] if _rename(key, names) is None]
    _refuse(repeated, f"keys of {Path(main_ckpt).name} that belong to no part of the autoencoder")
    _fill(vae, cfw, names, "")

    embedding = None
    if text_encoder is not None and tokenizer is not None:
        embedding = empty_prompt_by_encoder(text_encoder, tokenizer)
    elif parts[TEXT_PREFIX]:
        try:
            embedding = empty_prompt_by_weights(parts[TEXT_PREFIX])
        except KeyError as error:
            raise ValueError(f"the text tower lacks the key {TEXT_PREFIX}{error.args[0]}") from error
    return StableSRPipeline(
        vae=vae,
        unet=unet,
        structure_encoder=structure_encoder,
        scheduler=DDPMScheduler(
            num_train_timesteps=1000,
            beta_start=config.get("linear_start", PUBLISHED_CONFIG["linear_start"]),
            beta_end=config.get("linear_end", PUBLISHED_CONFIG["linear_end"]),
            beta_schedule="scaled_linear",
            variance_type="fixed_small",
            clip_sample=False,
            prediction_type=_prediction_type(config.get("parameterization", "eps")),
        ),
        prompt_embedding=None if embedding is None else EmptyPromptEmbedding.from_tensor(embedding.to(unet.dtype)),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    )


def convert_to_folder(
    main_ckpt: str | Path,
    cfw_ckpt: str | Path,
    output_path: str | Path,
    config: Mapping[str, Any] | str | Path | None = None,
) -> None:
    """Write a diffusers folder from the two published files; see `from_original`."""
    from_original(main_ckpt, cfw_ckpt, config).save_pretrained(output_path)


def unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the original U-Net's arguments into those of `StableSRUNet2DConditionModel`."""
    arguments = _Arguments("unet", config["unet"], _UNET_FIXED)
    base = arguments.take("model_channels")
    widths = [base * factor for factor in arguments.take("channel_mult")]
    attends = _attention_levels(arguments.take("attention_resolutions"), len(widths))
    pixels = config.get("image_size")
    result = {
        "sample_size": None if pixels is None else pixels // 2 ** (len(config["vae"]["ch_mult"]) - 1),
        "in_channels": arguments.take("in_channels"),
        "out_channels": arguments.take("out_channels"),
        "block_out_channels": tuple(widths),
        "layers_per_block": arguments.take("num_res_blocks"),
        "down_block_types": tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        "cross_attention_dim": arguments.take("context_dim"),
        # diffusers' name notwithstanding, this is the number of heads of each level.
        "attention_head_dim": tuple(arguments.heads(widths)),
        "transformer_layers_per_block": arguments.take("transformer_depth", 1),
        "use_linear_projection": arguments.take("use_linear_in_transformer", False),
        "structure_channels": arguments.take("semb_channels"),
    }
    arguments.finish()
    return result


def structure_encoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the original structure encoder's arguments into those of `StableSRStructureEncoder`."""
    arguments = _Arguments("structcond", config["structcond"], _STRUCTURE_FIXED)
    base = arguments.take("model_channels")
    widths = [base * factor for factor in arguments.take("channel_mult")]
    attends = _attention_levels(arguments.take("attention_resolutions"), len(widths))
    heads = arguments.heads(widths)
    result = {
        "in_channels": arguments.take("in_channels"),
        "out_channels": arguments.take("out_channels"),
        "block_out_channels": tuple(widths),
        "down_block_types": tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        "attention_head_dim": tuple(width // number for width, number in zip(widths, heads, strict=True)),
        "layers_per_block": arguments.take("num_res_blocks"),
    }
    arguments.finish()
    return result


def autoencoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the original autoencoder's arguments into those of `StableSRAutoencoderKL`."""
    arguments = _Arguments("vae", config["vae"], _VAE_FIXED)
    base = arguments.take("ch")
    widths = [base * factor for factor in arguments.take("ch_mult")]
    result = {
        "in_channels": arguments.take("in_channels"),
        "out_channels": arguments.take("out_ch"),
        "latent_channels": arguments.take("z_channels"),
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": arguments.take("num_res_blocks"),
        "sample_size": arguments.take("resolution"),
        "scaling_factor": config.get("scale_factor", PUBLISHED_CONFIG["scale_factor"]),
        # The original wraps features at every level but the finest and the coarsest.
        "fusion_levels": tuple(range(1, len(widths) - 1)),
    }
    arguments.finish()
    return result


def unet_names(unet: StableSRUNet2DConditionModel) -> dict[str, str]:
    """Return original module prefix -> ours, for the U-Net."""
    levels = range(len(unet.config.block_out_channels))
    names = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "middle_block.1": "mid_block.attentions.0",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    index = 1
    for level in levels:
        index = _name_level(names, unet.down_blocks[level], f"down_blocks.{level}", index, {"": ""})
    names |= _inner("middle_block.0", "mid_block.resnets.0", _RESNET)
    names |= _inner("middle_block.2", "mid_block.resnets.1", _RESNET)
    index = 0
    for level in levels:
        block, ours = unet.up_blocks[level], f"up_blocks.{level}"
        attends = hasattr(block, "attentions")
        for layer in range(len(block.resnets)):
            names |= _inner(f"output_blocks.{index}.0", f"{ours}.resnets.{layer}", _RESNET)
            if attends:
                names[f"output_blocks.{index}.1"] = f"{ours}.attentions.{layer}"
            index += 1
        if block.upsamplers is not None:
            names[f"output_blocks.{index - 1}.{2 if attends else 1}.conv"] = f"{ours}.upsamplers.0.conv"
    return names


def structure_encoder_names(encoder: StableSRStructureEncoder) -> dict[str, str]:
    """Return original module prefix -> ours, for the structure encoder."""
    names = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
    }
    index = 1
    for level, block in enumerate(encoder.down_blocks):
        index = _name_level(names, block, f"down_blocks.{level}", index, _STRUCTURE_ATTENTION)
        names |= _inner(f"fea_tran.{level}", f"feature_blocks.{level}", _RESNET)
    names |= _inner("middle_block.0", "mid_block.resnets.0", _RESNET)
    names |= _inner("middle_block.1", "mid_block.attentions.0", _STRUCTURE_ATTENTION)
    names |= _inner("middle_block.2", "mid_block.resnets.1", _RESNET)
    return names


def autoencoder_names(vae: StableSRAutoencoderKL) -> dict[str, str]:
    """Return original module prefix -> ours, for the autoencoder with feature wrapping."""
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    last = len(vae.config.block_out_channels) - 1
    for half in ("encoder", "decoder"):
        names |= {f"{half}.conv_in": f"{half}.conv_in", f"{half}.conv_out": f"{half}.conv_out"}
        names[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        names |= _inner(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", _VAE_RESNET)
        names |= _inner(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", _VAE_ATTENTION)
        names |= _inner(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", _VAE_RESNET)
    for level in range(last + 1):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{last - level}"
        for layer in range(vae.config.layers_per_block):
            names |= _inner(f"encoder.down.{level}.block.{layer}", f"{down}.resnets.{layer}", _VAE_RESNET)
        for layer in range(vae.config.layers_per_block + 1):
            names |= _inner(f"decoder.up.{level}.block.{layer}", f"{up}.resnets.{layer}", _VAE_RESNET)
        names[f"encoder.down.{level}.downsample.conv"] = f"{down}.downsamplers.0.conv"
        names[f"decoder.up.{level}.upsample.conv"] = f"{up}.upsamplers.0.conv"
    for fusion_level in vae.config.fusion_levels:
        theirs, ours = f"decoder.fusion_layer_{fusion_level}", f"fusion_blocks.{fusion_level}"
        names |= _inner(f"{theirs}.encode_enc_1", f"{ours}.reduce", _VAE_RESNET)
        names |= _inner(f"{theirs}.encode_enc_3", f"{ours}.refine", _VAE_RESNET)
        for dense in range(2):
            for block in range(3):
                for conv in range(5):
                    original = f"{theirs}.encode_enc_2.{dense}.rdb{block + 1}.conv{conv + 1}"
                    names[original] = f"{ours}.dense.{dense}.blocks.{block}.convs.{conv}"
    return names


def _read_config(config: Mapping[str, Any] | str | Path | None) -> Mapping[str, Any]:
    """The original arguments, with what lies outside the models' own sections checked."""
    if config is None:
        return PUBLISHED_CONFIG
    value: Any = config
    if isinstance(config, str | Path):
        try:
            value = json.loads(Path(config).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"config {config} is not JSON: {error}") from None
    for section in ("unet", "structcond", "vae"):
        if not isinstance(value, Mapping) or not isinstance(value.get(section), Mapping):
            raise ValueError(f"config: no arguments under {section!r}; want an object with unet, structcond and vae")
    for key in ("scale_factor", "linear_start", "linear_end", "image_size"):
        number = value.get(key, PUBLISHED_CONFIG[key])
        if not isinstance(number, int | float) and (key, number) != ("image_size", None):
            raise ValueError(f"config: {key} must be a number, got {number!r}")
    return value  # type: ignore[no-any-return]


class _Arguments:
    """The original arguments of one model, of which every one must be read."""

    def __init__(self, section: str, arguments: Mapping[str, Any], fixed: Mapping[str, Any]):
        self.section, self.left, self.fixed = section, dict(arguments), fixed

    def take(self, key: str, default: Any = None) -> Any:
        value = _plain(self.left.pop(key, default))
        if value is None:
            raise ValueError(f"config: {self.section}.{key} is missing")
        like = PUBLISHED_CONFIG[self.section].get(key, value)
        if type(value) is not type(like) or (isinstance(value, list) and not all(isinstance(v, int) for v in value)):
            raise ValueError(f"config: {self.section}.{key} must be of the kind of {like!r}, got {value!r}")
        return value

    def heads(self, widths: Iterable[int]) -> list[int]:
        """Return the attention heads of each level: a given number, or a given width of one head."""
        number, width = self.left.pop("num_heads", -1), self.left.pop("num_head_channels", -1)
        if not isinstance(number, int) or not isinstance(width, int) or number == width == -1:
            raise ValueError(f"config: {self.section} needs an integer num_heads or num_head_channels")
        return [number if width == -1 else channels // width for channels in widths]

    def finish(self) -> None:
        for key, value in self.left.items():
            if key not in self.fixed:
                raise ValueError(f"config: {self.section}.{key}={value!r} is not an argument known here")
            wanted = self.fixed[key]
            if wanted is not None and _plain(value) != wanted:
                raise ValueError(f"config: {self.section}.{key} must be {wanted!r}, got {value!r}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _attention_levels(factors: Iterable[int], num_levels: int) -> list[bool]:
    """Turn the downsampling factors that have attention into one flag per level."""
    return [2**level in set(factors) for level in range(num_levels)]


def _prediction_type(parameterization: str) -> str:
    types = {"eps": "epsilon", "v": "v_prediction"}
    if parameterization not in types:
        raise ValueError(f"config: parameterization must be eps or v, got {parameterization!r}")
    return types[parameterization]


def _inner(theirs: str, ours: str, table: Mapping[str, str]) -> dict[str, str]:
    """Return a block's table of inner names with both prefixes put in front."""
    return {f"{theirs}.{key}".rstrip("."): f"{ours}.{value}".rstrip(".") for key, value in table.items()}


def _name_level(names: dict[str, str], block: Any, ours: str, index: int, attention: Mapping[str, str]) -> int:
    """Add one encoder level, whose original blocks are numbered from `index`; return the number after it."""
    for layer in range(len(block.resnets)):
        names |= _inner(f"input_blocks.{index}.0", f"{ours}.resnets.{layer}", _RESNET)
        if hasattr(block, "attentions"):
            names |= _inner(f"input_blocks.{index}.1", f"{ours}.attentions.{layer}", attention)
        index += 1
    if block.downsamplers is not None:
        names[f"input_blocks.{index}.0.op"] = f"{ours}.downsamplers.0.conv"
        index += 1
    return index


def _rename(key: str, names: Mapping[str, str]) -> str | None:
    """Rename a key by the longest of its prefixes that has a name; None without one."""
    head = key
    while "." in head:
        head = head.rpartition(".")[0]
        if head in names:
            return names[head] + key[len(head) :]
    return None


def _fill(model: nn.Module, weights: Mapping[str, Tensor], names: Mapping[str, str], prefix: str) -> None:
    """Put a model's original weights in place of its meta tensors.

    Args:
        weights: original key without prefix -> tensor.
        names: original module prefix -> ours.
        prefix: of the keys in the file, for messages.
    """
    wanted = model.state_dict()
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    unknown = []
    for key, tensor in weights.items():
        name = _rename(key, names)
        if name is not None and ".qkv." in name:
            parts = _split_heads(tensor, _heads(model, name))
            entries = {name.replace("qkv", f"to_{letter}"): part for letter, part in zip("qkv", parts, strict=True)}
        else:
            entries = {} if name is None else {name: tensor}
        if not entries or any(entry not in wanted for entry in entries):
            unknown.append(prefix + key)
            continue
        renamed |= entries
        origin |= dict.fromkeys(entries, prefix + key)
    _refuse(unknown, f"keys that {type(model).__name__} has no place for")
    missing = [f"{prefix}... -> {name}" for name in wanted if name not in renamed]
    _refuse(missing, f"weights of {type(model).__name__} that the checkpoint lacks")
    not_finite = [origin[name] for name, tensor in renamed.items() if not bool(tensor.isfinite().all())]
    _refuse(not_finite, f"weights of {type(model).__name__} that hold NaN or infinity")
    for name, tensor in renamed.items():
        # 1x1 convolutions of the original are linear layers here.
        if tensor.ndim > wanted[name].ndim:
            renamed[name] = tensor = tensor.flatten(wanted[name].ndim - 1)
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{origin[name]} has shape {tuple(tensor.shape)}, wanted {tuple(wanted[name].shape)} for {name}; "
                "check config"
            )
    model.load_state_dict(renamed, assign=True)
    model.eval()


def _heads(model: nn.Module, name: str) -> int:
    attention: Any = model.get_submodule(name.partition(".qkv.")[0])
    return int(attention.heads)


def _split_heads(tensor: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split a fused projection (3C, ...), in which every head's query, key and value rows lie together."""
    per_head = tensor.unflatten(0, (heads, 3, -1))
    query, key, value = (per_head[:, part].flatten(0, 1) for part in range(3))
    return query, key, value


def _refuse(keys: list[str], what: str) -> None:
    if keys:
        more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
        raise ValueError(f"{len(keys)} {what}: {', '.join(keys[:8])}{more}")


def _load(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint; nothing in the file is executed."""
    mapped = zipfile.is_zipfile(path)
    named: list[str] = []
    try:
        if mapped:
            named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        # Plain dictionaries stand in for the framework's objects, which nothing here reads.
        inert: list[Any] = [(OrderedDict, name) for name in named if name.startswith(_INERT_MODULES)]
        with torch.serialization.safe_globals(inert):
            checkpoint = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except pickle.UnpicklingError as error:
        refused = [name for name in named if not name.startswith(_INERT_MODULES)]
        raise ValueError(
            f"{path} holds more than tensors and is not loaded ({', '.join(refused) or error}); where its source is "
            "trusted, re-save its state_dict alone by torch.save"
        ) from error
    except (RuntimeError, EOFError) as error:
        reason = str(error).partition(". ")[0]
        raise ValueError(f"{path} is cut short or no checkpoint ({reason}); fetch it again") from None
    weights = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        held = ", ".join(map(str, list(weights)[:8])) if isinstance(weights, dict) else type(checkpoint).__name__
        raise ValueError(f"{path} has no state_dict of tensors, got {held}")
    return dict(weights)
