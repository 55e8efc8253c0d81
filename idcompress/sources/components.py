"""The components of a pipeline folder, each loaded whole or not at all, and whether they fit one task and each other.

diffusers and transformers fill weights that a file lacks with random numbers, and take a default for every field that a
configuration lacks. Here the first is an error, and so is whatever would make a picture of noise.
"""

from __future__ import annotations

import importlib
import sys
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from .. import registry
from ..adapters.pipeline import native_latents
from ..console import warn
from ..errors import IdcError, is_out_of_memory
from ..runs import files
from ..schedulers import CARRIED, FixedTimestepsScheduler, process_of
from . import folders

# Fields that decide what a noise schedule is, and that diffusers has another default for than Stable Diffusion.
_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
# Inputs of a U-Net that no task computes.
_FURTHER_INPUTS = (
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "encoder_hid_dim",
    "time_cond_proj_dim",
)
# Numbers that are no weights: older versions stored them, newer ones compute them.
_NO_WEIGHTS = ("position_ids", "num_batches_tracked")
# The other half of CLIP, beside a text encoder, and what only that half is compared with.
_OTHER_TOWERS = ("vision_model.", "visual_projection.", "visual.", "text_projection.", "logit_scale")


def load_components(
    task: Any, index: dict[str, Any], folder: Path, dtype: torch.dtype, given: Iterable[str] = ()
) -> dict[str, Any]:
    """Every component that a task's pipeline class takes of a folder.

    Args:
        task: class of the task.
        index: the folder's model_index.json.
        given: components that come from elsewhere.

    Raises:
        IdcError: a component that does not load, or that lacks weights.
    """
    wanted = _parameters(_pipeline_class(task)).keys() - set(given)
    return {
        name: load_component(folder / name, library, class_name, dtype)
        for name, (library, class_name) in folders.components_of(index, folder).items()
        if name in wanted
    }


def load_component(folder: Path, library: str, class_name: str, dtype: torch.dtype) -> Any:
    """One component: a network with every weight from its files, a scheduler or a tokenizer.

    Raises:
        IdcError: its class is unknown, the files do not fit it, or weights are missing.
    """
    entry = _class(folder, library, class_name)
    if not folders.has_weights(class_name):
        if issubclass(entry, diffusers.SchedulerMixin):
            _check_scheduler(folder)
        return _loaded(folder, class_name, lambda: entry.from_pretrained(folder))
    arguments = {"dtype": dtype, "use_safetensors": True, "variant": folders.variant_of(folder)}
    if library == "transformers":  # whose own error about other shapes does not name the weights
        arguments["ignore_mismatched_sizes"] = True
    component, info = _loaded(
        folder, class_name, lambda: entry.from_pretrained(folder, output_loading_info=True, **arguments)
    )
    _check_weights(folder, class_name, component, info)
    return component


def _loaded(folder: Path, class_name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # the libraries raise any kind of exception for files that they cannot use
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split()).partition(" If you want to instead")[0] or type(error).__name__
        raise IdcError(f"{folder} does not load as a {class_name}: {text[:400]}") from None


def _check_weights(folder: Path, class_name: str, component: nn.Module, info: dict[str, Any]) -> None:
    """Raise IdcError unless a network's weights are those of its files, no more and no less."""
    missing = {str(name) for name in info.get("missing_keys", ())}
    missing |= {name for name, tensor in component.named_parameters() if tensor.is_meta}
    mismatched = [str(entry[0] if isinstance(entry, (list, tuple)) else entry) for entry in info["mismatched_keys"]]
    modules = {name.partition(".")[0] for name in component.state_dict()} | {"text_model"}
    unexpected = [
        str(name)
        for name in info.get("unexpected_keys", ())
        if not str(name).startswith(_OTHER_TOWERS) and not str(name).endswith(_NO_WEIGHTS)
    ]
    if not isinstance(component, diffusers.ModelMixin):  # text encoders come in files with other networks
        unexpected = [name for name in unexpected if name.partition(".")[0] in modules]
    for names, what in (
        (sorted(missing), "lacks weights of the"),
        (mismatched, "holds weights of another shape than the"),
        (sorted(unexpected), "holds weights that have no place in the"),
    ):
        if names:
            some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise IdcError(
                f"{folder} {what} {class_name} that its config.json describes: {some}; copy or fetch the folder again"
            )


def _check_scheduler(folder: Path) -> None:
    """Say where a scheduler's configuration leaves the noise schedule to diffusers' defaults."""
    file = folder / "scheduler_config.json"
    if not file.is_file():
        raise IdcError(f"{folder.parent} is incomplete: {folder.name}/{file.name} is missing")
    config = files.read_json(file, "model", infinite=True)
    lacking = [name for name in _SCHEDULE if name not in config]
    if lacking and config.get("trained_betas") is None and "shift" not in config:
        warn(
            f"{file} says nothing of {', '.join(lacking)}: diffusers' defaults are taken, which may not be the model's"
        )


def _class(folder: Path, library: str, class_name: str) -> type[Any]:
    """A component's class, of this program, diffusers or transformers alone; code in a folder is never run."""
    if (library, class_name) == (CARRIED, FixedTimestepsScheduler.__name__):
        # diffusers looks up the module of a component that it is handed, where it finds it imported.
        sys.modules.setdefault(CARRIED, sys.modules[FixedTimestepsScheduler.__module__])
        own: type[Any] = FixedTimestepsScheduler
        return own
    if library.partition(".")[0] not in ("diffusers", "transformers", "idcompress"):
        raise IdcError(
            f"{folder.parent / 'model_index.json'}: {folder.name} is a {class_name} of {library}; want a class of "
            "diffusers or transformers"
        )
    try:
        entry = getattr(importlib.import_module(library), class_name, None)
    except ImportError:
        entry = None
    if not isinstance(entry, type) or not hasattr(entry, "from_pretrained"):
        raise IdcError(
            f"{folder.parent / 'model_index.json'}: {folder.name} is a {class_name}, which {library} does not have"
        )
    return entry


def _pipeline_class(task: Any) -> Any:
    return getattr(importlib.import_module(task.pipeline_library), task.pipeline_class)


def _parameters(pipeline_class: Any) -> dict[str, Any]:
    """What a pipeline class is made of: component -> its type as annotated."""
    hints = typing.get_type_hints(pipeline_class.__init__)
    return {name: hint for name, hint in hints.items() if name not in ("return", "requires_safety_checker")}


def left_out(task: Any) -> dict[str, Any]:
    """Arguments that keep a pipeline class from loading what is never used."""
    parameters = typing.get_type_hints(_pipeline_class(task).__init__)
    found: dict[str, Any] = {name: None for name in folders.LEFT_OUT if name in parameters}
    return found | ({"requires_safety_checker": False} if "requires_safety_checker" in parameters else {})


def check_fits(task: Any, components: dict[str, Any], folder: Path) -> None:
    """Raise IdcError where components fit neither the task nor each other, with what was found and what is wanted."""
    entry = _pipeline_class(task)
    optional = set(getattr(entry, "_optional_components", ()))
    for name, hint in _parameters(entry).items():
        component = components.get(name)
        if component is None:
            if name not in optional:
                raise IdcError(f"{folder} has no {name}; a {task.pipeline_class} wants one, named in model_index.json")
            continue
        kinds = tuple(kind for kind in typing.get_args(hint) or (hint,) if isinstance(kind, type))
        if isinstance(component, nn.Module) and kinds and not isinstance(component, kinds):
            raise IdcError(
                f"{folder}: {name} is a {type(component).__name__}, and task={task.name} wants a {kinds[0].__name__}"
            )
    _check_scheduler_fits(components["scheduler"], folder)
    _check_unet(task, components, folder)
    if components.get("tokenizer") is not None and components.get("text_encoder") is not None:
        _check_tokenizer(components["tokenizer"], components["text_encoder"], folder)


def _check_scheduler_fits(scheduler: Any, folder: Path) -> None:
    try:
        process_of(scheduler)
    except ValueError as error:
        raise IdcError(f"{folder / 'scheduler'}: {error}") from None


def _check_unet(task: Any, components: dict[str, Any], folder: Path) -> None:
    unet, latents = components["unet"].config, int(components["vae"].config.latent_channels)
    got, want = int(unet.in_channels), task.unet_channels(latents)
    if got != want:
        others = [
            f"task={name}"
            for name in registry.names("task")
            if (other := registry.load("task", name).Task).unet_channels(latents) == got
            and isinstance(components["unet"], _parameters(_pipeline_class(other))["unet"])
        ]
        fits = f"it would fit {' or '.join(others)}" if others else "it fits no task of idcompress"
        times = "" if task.unet_inputs == 1 else f", {task.unet_inputs} times"
        times += f", and {task.unet_mask_channels} of a mask" if task.unet_mask_channels else ""
        raise IdcError(
            f"{folder}: the U-Net has {got} input channels, and task={task.name} wants {want} (the autoencoder's "
            f"{latents}{times}); {fits}"
        )
    if int(unet.out_channels) != latents:
        raise IdcError(
            f"{folder}: the U-Net has {unet.out_channels} output channels, the autoencoder {latents}; want as many"
        )
    further = [name for name in _FURTHER_INPUTS if unet.get(name) is not None]
    if further:
        raise IdcError(
            f"{folder}: the U-Net wants inputs that task={task.name} does not compute ({', '.join(further)})"
        )
    branch = components.get("controlnet")
    if branch is not None:
        for name in ("in_channels", "cross_attention_dim", "block_out_channels"):
            ours, theirs = (list(v) if isinstance(v := c.get(name), tuple) else v for c in (branch.config, unet))
            if ours != theirs:
                raise IdcError(
                    f"{folder}: {name} of the control branch is {ours}, and the U-Net's {theirs}; want the same"
                )
        if branch.config.conditioning_channels != 3:
            raise IdcError(
                f"{folder}: the control branch takes pictures of {branch.config.conditioning_channels} channels; want 3"
            )
    encoder, width = components.get("text_encoder"), unet.get("cross_attention_dim")
    hidden = None if encoder is None else encoder.config.hidden_size
    if hidden is not None and isinstance(width, int) and width != hidden and unet.get("encoder_hid_dim") is None:
        raise IdcError(
            f"{folder}: the text encoder is {hidden} wide, and the U-Net's cross_attention_dim {width}; want the same"
        )
    if unet.get("sample_size") is not None:
        side = native_latents(unet)
        if not isinstance(unet.sample_size, int):
            size = list(unet.sample_size)
            warn(f"the U-Net's sample_size is {size}: pictures are worked on at the shorter side, {side}")


def _check_tokenizer(tokenizer: Any, encoder: Any, folder: Path) -> None:
    """Raise IdcError unless a tokenizer tells words apart, in numbers that the text encoder knows.

    One that does not know its length gets the encoder's.
    """
    place, words = folder / "tokenizer", ("a photograph", "make it blue")
    try:
        ids = [tokenizer(text).input_ids for text in words]
    except Exception as error:  # the library's tokenizers raise bare exceptions
        raise IdcError(f"{place} cannot take {words[0]!r} apart ({error}); copy or fetch the folder again") from None
    plain = [[i for i in found if i not in tokenizer.all_special_ids] for found in ids]
    if not all(plain) or plain[0] == plain[1]:
        raise IdcError(f"{place} has no vocabulary: {words[0]!r} and {words[1]!r} are the same to it; fetch it again")
    size = int(encoder.config.vocab_size)
    largest = max(max(found) for found in ids)
    if len(tokenizer) > size or largest >= size:
        raise IdcError(
            f"{place} has {len(tokenizer)} words, and the text encoder {size}; want the tokenizer that belongs to it"
        )
    longest = getattr(encoder.config, "max_position_embeddings", None)
    if longest is not None and tokenizer.model_max_length > longest:
        tokenizer.model_max_length = longest
