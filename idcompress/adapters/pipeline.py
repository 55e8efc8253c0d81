"""Diffusers pipelines: load one, cut it to a recipe, encode and decode."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import registry
from ..artifacts import files
from ..artifacts.recipe import Recipe
from ..core.random import randn_like
from ..errors import IdcError
from ..schedulers import FixedTimestepsScheduler
from . import hub

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Model:
    """A loaded model at full depth.

    Attributes:
        pipeline: the diffusers pipeline, in eval mode, on its device.
        source: what a recipe says of it: name, path, revision, digest.
        prune: name of the prune method for its recipes.
    """

    pipeline: Any
    source: dict[str, Any]
    prune: str = "depth_skip"

    @property
    def full_depth(self) -> int:
        return int(registry.load("prune", self.prune, "prune.name").levels(self.pipeline.components))

    @property
    def digest(self) -> str:
        return str(self.source["digest"])

    def at(self, depth: int | None) -> Any:
        """The pipeline cut to a depth; components that the cut leaves alone are shared, not copied."""
        if depth is None:
            return self.pipeline
        replaced = registry.load("prune", self.prune, "prune.name").apply(self.pipeline.components, depth)
        return with_components(self.pipeline, replaced)

    def for_recipe(self, recipe: Recipe) -> Any:
        """The pipeline cut as a recipe says, with its fine-tuned weights if it has any."""
        pipeline = self.at(recipe.depth)
        if recipe.weights:
            # A pruned component is already a copy; an uncut one is the shared original.
            cut = (
                {}
                if recipe.depth not in (None, self.full_depth)
                else {name: copy.deepcopy(getattr(pipeline, name)) for name in recipe.weights}
            )
            pipeline = with_components(pipeline, cut)
            load_weights(pipeline, recipe)
        return pipeline


def with_components(pipeline: Any, replaced: dict[str, Any]) -> Any:
    """A pipeline like this one with some components replaced, sharing the others; the argument stays as it was."""
    if not replaced:
        return pipeline
    new = copy.copy(pipeline)
    new._internal_dict = copy.copy(pipeline._internal_dict)
    for name, component in replaced.items():
        setattr(new, name, component)
    return new


def load_weights(pipeline: Any, recipe: Recipe) -> None:
    """Put a recipe's fine-tuned weights into a pipeline that was cut to its depth.

    Raises:
        IdcError: a file is missing, was changed since the recipe was written, or does not fit.
    """
    for name, entry in recipe.weights.items():
        path = (recipe.folder or Path()) / entry["file"]
        if not path.is_file():
            raise IdcError(f"the recipe's weights {path} are missing; copy them together with recipe.json")
        hub.check_safetensors(path)
        if files.file_digest(path) != entry["sha256"]:
            raise IdcError(f"{path} is not the file that the recipe was written with (its SHA-256 differs)")
        component: nn.Module = getattr(pipeline, name)
        like = next(component.parameters())
        try:
            component.load_state_dict({k: v.to(like) for k, v in load_file(path).items()})
        except RuntimeError as error:
            raise IdcError(f"{path} does not fit the {name} at depth {recipe.depth}: {error}") from None


def load_model(
    pipeline_class: str,
    folders: dict[str, Path],
    source: dict[str, Any],
    *,
    device: str = "auto",
    dtype: str = "auto",
    prune: str = "depth_skip",
) -> Model:
    """Load a pipeline from folders.

    Args:
        pipeline_class: the diffusers (or idcompress.models) class that the task wants.
        folders: {"pipeline": a pipeline folder, "controlnet": a component that comes from elsewhere, ...}.
        source: what a recipe should say of the model; its digest is added here.
        device: "auto" takes CUDA, then MPS, then the CPU.
        dtype: "auto" is float16 on CUDA and float32 elsewhere.

    Raises:
        IdcError: an incomplete or damaged folder, a pipeline of another kind, a device that is not there.
    """
    where = choose_device(device)
    pipeline = _load_pipeline(pipeline_class, folders, choose_dtype(dtype, where))
    digest = hub.folder_digest(list(folders.values()))
    return Model(pipeline.to(where), {**source, "digest": digest}, prune)


def _load_pipeline(pipeline_class: str, folders: dict[str, Path], dtype: torch.dtype) -> Any:
    folder = folders["pipeline"]
    index = hub.check_folder(folder)
    components: dict[str, Any] = {}
    for name, component_folder in folders.items():
        if name != "pipeline":
            components[name] = diffusers.ControlNetModel.from_pretrained(
                component_folder, dtype=dtype, use_safetensors=True
            )
    if not components and index.get("_class_name") != pipeline_class:
        raise IdcError(f"{folder} is a {index.get('_class_name')}; this task wants a {pipeline_class}")
    if "safety_checker" in index:
        components |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    cls = getattr(diffusers, pipeline_class, None) or _own_pipeline(pipeline_class)
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        pipeline = cls.from_pretrained(folder, dtype=dtype, use_safetensors=True, **components)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise IdcError(f"{folder} does not load as a {pipeline_class}: {error}") from None
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    return pipeline


def _own_pipeline(name: str) -> Any:
    from ..models import stablesr

    return getattr(stablesr, name)


def choose_device(name: str) -> str:
    """torch's name of a configured device; "auto" takes CUDA, then MPS, then the CPU."""
    if name != "auto":
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise IdcError(f"device={name}: torch finds no CUDA device here; use device=cpu or device=auto")
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_dtype(name: str, device: str) -> torch.dtype:
    """A configured dtype; "auto" is float16 on CUDA and float32 elsewhere."""
    if name == "auto":
        return torch.float16 if device.startswith("cuda") else torch.float32
    return DTYPES[name]


def alphas_cumprod(pipeline: Any) -> Tensor:
    """The noise schedule's products, (T,), float32, CPU, from the pipeline's own scheduler."""
    products: Tensor = pipeline.scheduler.alphas_cumprod
    return products.detach().float().cpu()


def encode_prompts(pipeline: Any, prompts: list[str]) -> Tensor:
    """Text encoder states, (B, tokens, channels), in the encoder's dtype."""
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
    return (images.float() / 2 + 0.5).clamp(0, 1).cpu()


def vae_scale_factor(pipeline: Any) -> int:
    return 2 ** (len(pipeline.vae.config.block_out_channels) - 1)


def native_size(pipeline: Any) -> int:
    """Side of the square images that the U-Net was trained on, in pixels."""
    if pipeline.unet.config.sample_size is None:
        raise IdcError("unet/config.json has no sample_size; set it to the side of the latents that it was trained on")
    return int(pipeline.unet.config.sample_size) * vae_scale_factor(pipeline)


def fixed_scheduler(pipeline: Any, timesteps: list[int], *, ancestral: bool = False) -> FixedTimestepsScheduler:
    """The pipeline's noise schedule and prediction type, over a list of timesteps."""
    scheduler: FixedTimestepsScheduler = FixedTimestepsScheduler.from_config(
        pipeline.scheduler.config, timesteps=timesteps, clip_sample=False, **({"eta": 1.0} if ancestral else {})
    )
    return scheduler
