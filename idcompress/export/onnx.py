"""Pipelines as ONNX graphs, one per network, with any batch and image size; each is compared with torch.

They are traced: for these networks that is as exact as torch's newer exporter, in seconds where that takes minutes.
Tracing keeps what Python decides at the traced size, so that size is odd: diffusers' U-Nets then take the branch that
fits every size, and a check at another size and batch tells whether anything else was kept.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters.fold import fold_pipeline
from ..adapters.pipeline import vae_scale_factor
from ..adapters.unet import full_depth
from ..errors import IdcError
from .stock_form import forget_paths

OPSET = 17
TOLERANCE = 1e-4  # of the largest value of an output; rounding in another order gives about 1e-6
# Batch, height and width of the latents.
_TRACED, _CHECKED = (2, 13, 11), (3, 16, 24)


def check_packages() -> None:
    """Raise IdcError unless what writes and runs ONNX is installed."""
    for name in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise IdcError(f"export.format=onnx needs the package {name}: pip install 'idcompress[onnx]'") from None


@dataclass(frozen=True)
class Graph:
    """A network as a function of tensors.

    Attributes:
        name: of its file, without the suffix.
        module: takes `inputs` by position, returns a tuple of `outputs`.
        inputs, outputs: names; what one graph gives under a name is what another takes under it.
    """

    name: str
    module: nn.Module
    inputs: list[str]
    outputs: list[str]


def graphs(pipeline: Any) -> list[Graph]:
    """The networks of a pipeline, cut or not, in the order in which a picture passes through them.

    All shapes and ranges are diffusers': `sample`, `latents` (B, 4, h, w), `image` (B, 3, H, W) in [-1, 1], one
    `timestep`, int64, for the batch. `mean` and `std` are of the latents, scaled for StableSR and unscaled for
    InstructPix2Pix, as either wants them; `latents` are scaled.
    """
    parts, vae = pipeline.components, pipeline.vae
    sampled = ["sample", "timestep"]
    if "structure_encoder" in parts:
        features = _numbered("feature", len(vae.fusion_blocks))
        structure = _numbered("structure", len(pipeline.structure_encoder.feature_blocks))
        return [
            Graph("vae_encoder", _Encoder(vae, vae.config.scaling_factor), ["image"], ["mean", "std", *features]),
            Graph("structure_encoder", _Structure(pipeline), ["image_latents", "timestep"], structure),
            Graph("unet", _StructuredUNet(pipeline), [*sampled, *structure], ["model_output"]),
            Graph("vae_decoder", _Decoder(vae), ["latents", "fidelity_weight", *features], ["decoded"]),
        ]
    sampled.append("encoder_hidden_states")
    text_encoder = Graph("text_encoder", _TextEncoder(pipeline), ["input_ids"], ["encoder_hidden_states"])
    decoder = Graph("vae_decoder", _Decoder(vae), ["latents"], ["decoded"])
    if "controlnet" in parts:
        branch = _Branch(pipeline)
        residuals = _numbered("residual", branch.units + branch.has_middle)
        control = Graph("controlnet", branch, [*sampled, "controlnet_cond"], residuals)
        unet = Graph("unet", _UNet(pipeline), [*sampled, *residuals], ["model_output"])
        return [text_encoder, control, unet, decoder]
    encoder = Graph("vae_encoder", _Encoder(vae, 1.0), ["image"], ["mean", "std"])
    return [text_encoder, encoder, Graph("unet", _UNet(pipeline), sampled, ["model_output"]), decoder]


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}_{index}" for index in range(count)]


class _TextEncoder(nn.Module):
    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.text_encoder = pipeline.text_encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        return (self.text_encoder(input_ids)[0],)


class _Encoder(nn.Module):
    """With what the decoder wraps in, where the autoencoder has that."""

    def __init__(self, vae: Any, scale: float) -> None:
        super().__init__()
        self.vae, self.scale = vae, scale

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        wraps = {"return_features": True} if hasattr(self.vae, "fusion_blocks") else {"return_dict": False}
        posterior, *features = self.vae.encode(image, **wraps)
        return (posterior.mean * self.scale, posterior.std * self.scale, *(f for group in features for f in group))


class _Decoder(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor, fidelity_weight: Tensor | None = None, *features: Tensor) -> tuple[Tensor, ...]:
        wrapped = {} if fidelity_weight is None else {"fidelity_weight": fidelity_weight, "features": features}
        return (self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False, **wrapped)[0],)


class _UNet(nn.Module):
    """With the control residuals in a row: those of the encoder units and, of an uncut branch, the middle one."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.unet, self.units = pipeline.unet, full_depth(pipeline.unet) - 1

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *residuals: Tensor
    ) -> tuple[Tensor, ...]:
        control = (
            {
                "down_block_additional_residuals": residuals[: self.units],
                "mid_block_additional_residual": residuals[-1],  # a cut U-Net takes zero for it
            }
            if residuals
            else {}
        )
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False, **control)


class _Branch(nn.Module):
    """The residuals that the U-Net reads; a stock branch may have more than its U-Net, a cut one has no middle."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.controlnet = pipeline.controlnet
        self.units = min(len(self.controlnet.controlnet_down_blocks), full_depth(pipeline.unet) - 1)
        self.has_middle = self.controlnet.config.get("depth") is None

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        down, middle = self.controlnet(*inputs, return_dict=False)
        return (*down[: self.units], middle) if self.has_middle else tuple(down)


class _Structure(nn.Module):
    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.structure_encoder = pipeline.structure_encoder

    def forward(self, image_latents: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.structure_encoder(image_latents, timestep).values())


class _StructuredUNet(nn.Module):
    """The empty prompt, the only one there is, comes as a constant."""

    prompt: Tensor

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.unet = pipeline.unet
        self.register_buffer("prompt", pipeline.encode_prompt(1))

    def forward(self, sample: Tensor, timestep: Tensor, *structure: Tensor) -> tuple[Tensor, ...]:
        prompt = self.prompt.expand(sample.shape[0], -1, -1)
        return self.unet(sample, timestep, prompt, _ByWidth(structure), return_dict=False)


class _ByWidth(dict[int, Tensor]):
    """Structure features by width, which is a tensor while a network is traced: each level finds its own for good."""

    def __init__(self, structure: tuple[Tensor, ...]) -> None:
        super().__init__({int(features.shape[-1]): features for features in structure})

    def __contains__(self, width: Any) -> bool:
        return super().__contains__(int(width))

    def __getitem__(self, width: Any) -> Tensor:
        return super().__getitem__(int(width))


@torch.no_grad()
def export_onnx(
    pipeline: Any, folder: Path, timesteps: list[int], *, fold: bool = False
) -> tuple[dict[str, float], dict[str, int]]:
    """Write every graph as NAME.onnx, its weights as NAME.onnx.data, and compare them with torch in onnxruntime.

    The tokenizer of a text encoder is written, too.

    Args:
        pipeline: cut, float32, on the CPU.
        folder: exists.
        timesteps: that it will be used at.
        fold: fold the pipeline, in place; the graphs are compared with what it was before.

    Returns:
        graph -> largest error, as a share of the largest value; what was folded -> parameters saved.

    Raises:
        IdcError: a graph is off by more than TOLERANCE.
    """
    found = graphs(pipeline)
    traced = example_values(pipeline, found, *_TRACED, timesteps[0])
    checked = example_values(pipeline, found, *_CHECKED, timesteps[-1])
    saved = fold_pipeline(pipeline) if fold else {}
    if "input_ids" in traced:
        pipeline.tokenizer.save_pretrained(folder / "tokenizer")
        forget_paths(folder)
    errors = {}
    for graph in found:
        path = folder / f"{graph.name}.onnx"
        _write(graph, traced, path)
        errors[graph.name] = largest_error(graph, checked, path)
        if not errors[graph.name] <= TOLERANCE:
            raise IdcError(
                f"{path.name} is off by {errors[graph.name]:.1e} of the largest value, more than {TOLERANCE:.0e}, in "
                "onnxruntime; nothing was exported. Use export.format=diffusers, and please report the versions of "
                "torch and onnxruntime"
            )
    return errors, saved


def example_values(
    pipeline: Any, found: list[Graph], batch: int, height: int, width: int, timestep: int
) -> dict[str, Tensor]:
    """Random inputs of all graphs by name, and what torch makes of them."""
    generator = torch.Generator().manual_seed(0)

    def normal(channels: int, scale: int = 1) -> Tensor:
        return torch.randn(batch, channels, height * scale, width * scale, generator=generator)

    factor, latent_channels = vae_scale_factor(pipeline), int(pipeline.vae.config.latent_channels)
    values = {
        "sample": normal(pipeline.unet.config.in_channels),
        "latents": normal(latent_channels),
        "image_latents": normal(latent_channels),
        "image": normal(3, factor).clamp(-1, 1),
        "controlnet_cond": normal(3, factor).clamp(0, 1),
        "timestep": torch.tensor(timestep),
        "fidelity_weight": torch.tensor(0.5),
    }
    if "input_ids" in found[0].inputs:
        tokenizer = pipeline.tokenizer
        shape = (batch, tokenizer.model_max_length)
        values["input_ids"] = torch.randint(len(tokenizer), shape, generator=generator)
    for graph in found:
        outputs = graph.module(*(values[name] for name in graph.inputs))
        values |= zip(graph.outputs, outputs, strict=True)
    return values


def _write(graph: Graph, values: dict[str, Tensor], path: Path) -> None:
    import onnx

    def free_axes(name: str) -> dict[int, str]:
        dimensions = values[name].dim()
        sides = {2: f"{name}_height", 3: f"{name}_width"} if dimensions == 4 else {}
        return ({0: "batch"} if dimensions else {}) | sides

    with TemporaryDirectory(dir=path.parent) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of what it keeps
        traced = Path(scratch) / path.name
        torch.onnx.export(
            graph.module.eval(),
            tuple(values[name] for name in graph.inputs),
            str(traced),
            dynamo=False,
            opset_version=OPSET,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_axes={name: free_axes(name) for name in (*graph.inputs, *graph.outputs)},
        )
        # Above 2 GB the exporter writes a file per weight; whatever the size, one file holds them all.
        weights = path.with_name(f"{path.name}.data")
        onnx.save_model(onnx.load(traced), path, save_as_external_data=True, location=weights.name)
        weights.chmod(path.stat().st_mode)  # onnx makes it readable for its owner alone


def largest_error(graph: Graph, values: dict[str, Tensor], path: Path) -> float:
    """Largest difference between onnxruntime and torch, as a share of the largest value of an output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # An input that plays no part is none of the file's: the time in a branch of depth 1, say.
    feeds = {entry.name: values[entry.name].numpy() for entry in session.get_inputs()}
    errors = []
    for name, made in zip(graph.outputs, session.run(graph.outputs, feeds), strict=True):
        wanted = values[name].numpy()
        errors.append(np.abs(made - wanted).max() / max(np.abs(wanted).max(), 1e-12))
    return float(np.max(errors))
