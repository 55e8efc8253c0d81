"""Diffusers pipelines as this program uses them: on a device, with components replaced, encoding and decoding."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..console import warn
from ..core.plan import Plan
from ..core.random import randn_like
from ..errors import IdcError, NotFiniteError
from ..schedulers import FixedTimestepsScheduler, process_of
from .cut_models import named

_prompts_said: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
_MOST_PROMPTS_SAID = 10  # prompts of one model that are said to be too long
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def with_components(pipeline: Any, replaced: dict[str, Any]) -> Any:
    """A pipeline like this one with some components replaced, sharing the others; the argument stays as it was."""
    if not replaced:
        return pipeline
    new = copy.copy(pipeline)
    new._internal_dict = copy.copy(pipeline._internal_dict)
    for name, component in replaced.items():
        setattr(new, name, component)
    return new


def with_copies(pipeline: Any, names: Iterable[str]) -> Any:
    """A pipeline like this one with copies of some networks, to be trained: cuts share parameters with the model."""
    return with_components(pipeline, {name: copy.deepcopy(getattr(pipeline, name)) for name in names})


def choose_device(name: str) -> str:
    """torch's name of a configured device; "auto" takes CUDA, then MPS, then the CPU."""
    if name != "auto":
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise IdcError(f"device={name}: torch finds no CUDA device here; use device=cpu or device=auto")
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_of(name: str) -> str:
    """The device that tensors come to lie on by a configured name, with its number: "cuda:0", "cpu"."""
    return str(torch.empty(0, device=choose_device(name)).device)


def choose_dtype(name: str, device: str) -> torch.dtype:
    """A configured dtype; "auto" is float16 on CUDA and float32 elsewhere."""
    if name == "auto":
        return torch.float16 if device.startswith("cuda") else torch.float32
    return DTYPES[name]


def encode_prompts(pipeline: Any, prompts: list[str]) -> Tensor:
    """Text encoder states, (B, tokens, channels), in the encoder's dtype; what it cannot read of a prompt is told."""
    for prompt in dict.fromkeys(prompts):
        _warn_where_cut(pipeline.tokenizer, prompt)
    tokens = pipeline.tokenizer(
        prompts,
        padding="max_length",
        max_length=pipeline.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    encoder = pipeline.text_encoder
    mask = tokens.attention_mask.to(encoder.device) if getattr(encoder.config, "use_attention_mask", False) else None
    states: Tensor = encoder(tokens.input_ids.to(encoder.device), attention_mask=mask)[0]
    return states


def _warn_where_cut(tokenizer: Any, prompt: str) -> None:
    """Say once, with each model that is loaded, what of a prompt its text encoder does not get to read."""
    said = _prompts_said.setdefault(tokenizer, set())
    if prompt in said or len(said) > _MOST_PROMPTS_SAID:
        return
    length = int(tokenizer.model_max_length)
    # The last place is the end token's. verbose: transformers would say something of its own, without the text.
    cut = length - 1
    if tokenizer.is_fast:
        encoded = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
        number = len(encoded.input_ids)
        rest = prompt[encoded.offset_mapping[cut][0] :] if number > length else ""
    else:
        ids = tokenizer(prompt, verbose=False).input_ids
        number, rest = len(ids), tokenizer.decode(ids[cut:-1]) if len(ids) > length else ""
    if number <= length:
        return
    said.add(prompt)
    if len(said) > _MOST_PROMPTS_SAID:
        warn("further prompts are longer than the text encoder reads, and are cut without a line for each")
        return
    warn(
        f"the prompt has {number} tokens, and the text encoder reads {length}; this end of it is dropped: "
        f"{rest.strip()!r}; shorten the prompt"
    )


def check_finite(values: Tensor, what: str, network: Any) -> Tensor:
    """The same values.

    Args:
        what: they are, for the error.
        network: that gave them.

    Raises:
        NotFiniteError: NaN or infinity is among them.
    """
    if not bool(values.isfinite().all()):
        raise NotFiniteError(not_finite(what, network.dtype))
    return values


def not_finite(what: str, dtype: torch.dtype) -> str:
    """The error about NaN or infinity, with what may help."""
    name = str(dtype).removeprefix("torch.")
    advice = "try another model" if dtype == torch.float32 else "try dtype=float32"
    return f"{what} holds NaN or infinity, computed in {name}; {advice}, or smaller guidance scales"


def check_weights(pipeline: Any) -> None:
    """Where nothing is sampled: raise NotFiniteError if a network's weights hold NaN or infinity."""
    for name, component in pipeline.components.items():
        for key, values in component.state_dict().items() if isinstance(component, nn.Module) else ():
            if values.is_floating_point() and not bool(values.isfinite().all()):
                raise NotFiniteError(f"{key} of {name} holds NaN or infinity; copy, fetch or train the model again")


def encode_image_latents(pipeline: Any, images: Tensor) -> Tensor:
    """Mode of the autoencoder's posterior, unscaled, for images (B, 3, H, W) in [0, 1]."""
    vae = pipeline.vae
    latents: Tensor = vae.encode((images * 2 - 1).to(vae.device, vae.dtype)).latent_dist.mode()
    return latents


def draw_latents(pipeline: Any, images: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Draws from the autoencoder's posterior, scaled: (B, 4, h, w), float32, for images (B, 3, H, W) in [0, 1]."""
    vae = pipeline.vae
    posterior = vae.encode((images * 2 - 1).to(vae.device, vae.dtype)).latent_dist
    latents: Tensor = posterior.mean + posterior.std * randn_like(posterior.mean, generators)
    return vae.config.scaling_factor * latents.float()


def decode_latents(pipeline: Any, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W), float32 in [0, 1] on the CPU, from scaled latents."""
    vae = pipeline.vae
    images: Tensor = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
    check_finite(images, "the picture that the autoencoder (vae) decodes after the last step", vae)
    return (images.float() / 2 + 0.5).clamp(0, 1).cpu()


def vae_scale_factor(pipeline: Any) -> int:
    return 2 ** (len(pipeline.vae.config.block_out_channels) - 1)


def native_latents(config: Any) -> int:
    """Side of the square latents that a U-Net is used at, by its configuration: the shorter one of its sample_size."""
    size = config.sample_size
    if size is None:
        raise IdcError("unet/config.json has no sample_size; set it to the side of the latents that it was trained on")
    sides = size if isinstance(size, (list, tuple)) else [size]
    if not sides or len(sides) > 2 or not all(type(side) is int and side > 0 for side in sides):
        raise IdcError(f"unet/config.json: sample_size must be a side in latents or [height, width], got {size!r}")
    return min(sides)


def native_size(pipeline: Any) -> int:
    """Side of the square images that the U-Net was trained on, in pixels."""
    return native_latents(pipeline.unet.config) * vae_scale_factor(pipeline)


def working_size(pipeline: Any, resolution_px: int | None) -> int:
    """Side of the square images that are worked on, in pixels; None takes that which the U-Net was trained on.

    Raises:
        IdcError: the autoencoder does not take images of this side.
    """
    if resolution_px is None:
        return native_size(pipeline)
    check_resolution(resolution_px, vae_scale_factor(pipeline))
    return resolution_px


def check_resolution(resolution_px: int, factor: int) -> None:
    """Raise IdcError unless an autoencoder that shrinks by a factor takes images of this side."""
    if resolution_px % factor:
        raise IdcError(
            f"resolution_px must be a multiple of {factor}, by which the autoencoder shrinks, got {resolution_px}"
        )


def fixed_scheduler(pipeline: Any, plan: Plan) -> FixedTimestepsScheduler:
    """The pipeline's noise schedule and prediction type, over the timesteps of a plan.

    It takes the steps of DDIM, with the plan's fitted numbers if it has any, and of ancestral sampling where the plan
    says so.

    Raises:
        IdcError: a step does not compute everything, which a scheduler cannot bring about.
    """
    if not plan.is_plain:
        raise IdcError(
            "a pipeline cannot follow a plan whose steps differ in what they compute; leave depth at null, passes at "
            "all and refresh at true in the recipe's plan"
        )
    if process_of(pipeline.scheduler).real_timesteps:
        raise IdcError(
            f"the model's {type(pipeline.scheduler).__name__} is that of a flow, and a pipeline follows lists of whole "
            "timesteps only; sample it by idc translate and the other commands"
        )
    own: dict[str, Any] = {"eta": 1.0} if plan.sampler == "ancestral" else {}
    if plan.coefficients is not None:
        own["coefficients"] = [list(row) for row in plan.coefficients]
    # diffusers' private notes say which entries to replace by another class's defaults, positional ones among them.
    config = {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")}
    scheduler: FixedTimestepsScheduler = FixedTimestepsScheduler.from_config(
        config, timesteps=list(plan.timesteps), clip_sample=False, **own
    )
    return scheduler


def own_pipeline(pipeline: Any, plan: Plan | None) -> Any:
    """A cut pipeline that save_pretrained and from_pretrained keep as it is; it follows a plan if there is one."""
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    replaced: dict[str, Any] = {name: named(part) for name, part in modules.items()}
    if plan is not None:
        replaced["scheduler"] = fixed_scheduler(pipeline, plan)
    return with_components(pipeline, replaced)
