"""Networks of a pipeline as functions of tensors with names, to be written as ONNX graphs.

The wrappers are for diffusers' own components; those of a task alone stand with the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .pipeline import vae_scale_factor
from .unet import full_depth


@dataclass(frozen=True)
class Graph:
    """A network as a function of tensors.

    Attributes:
        name: of its file, without the suffix.
        module: takes `inputs` by position, returns a tuple of `outputs`.
        inputs, outputs: names; what one graph gives under a name is what another takes under it.
        values: examples of inputs that `example_values` does not know, to trace and to check the graph with.
    """

    name: str
    module: nn.Module
    inputs: list[str]
    outputs: list[str]
    values: Mapping[str, Tensor] = field(default_factory=dict)


def numbered(name: str, count: int) -> list[str]:
    """Names of tensors in a row: name_0, name_1, ..."""
    return [f"{name}_{index}" for index in range(count)]


@torch.no_grad()
def example_values(
    pipeline: Any, graphs: Sequence[Graph], batch: int, height: int, width: int, timestep: int
) -> dict[str, Tensor]:
    """Random inputs of all graphs by name, and what torch makes of them.

    Args:
        height, width: of the latents.
    """
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
    }
    if "input_ids" in graphs[0].inputs:
        tokenizer = pipeline.tokenizer
        shape = (batch, tokenizer.model_max_length)
        values["input_ids"] = torch.randint(len(tokenizer), shape, generator=generator)
    for graph in graphs:
        values |= graph.values
        outputs = graph.module(*(values[name] for name in graph.inputs))
        values |= zip(graph.outputs, outputs, strict=True)
    return values


class TextEncoder(nn.Module):
    """Token numbers (B, tokens), int64 -> states (B, tokens, channels)."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.text_encoder = pipeline.text_encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        return (self.text_encoder(input_ids)[0],)


class Encoder(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] -> mean and deviation of its latents, times `scale`."""

    def __init__(self, vae: Any, scale: float = 1.0) -> None:
        super().__init__()
        self.vae, self.scale = vae, scale

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        (posterior,) = self.vae.encode(image, return_dict=False)
        return posterior.mean * self.scale, posterior.std * self.scale


class Decoder(nn.Module):
    """Scaled latents -> image in [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        return (self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0],)


class UNet(nn.Module):
    """With control residuals in a row, if any: those of the encoder units and, of an uncut branch, the middle one."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.unet, self.units = pipeline.unet, full_depth(pipeline.unet) - 1

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *residuals: Tensor
    ) -> tuple[Tensor, ...]:
        control = (
            {
                "down_block_additional_residuals": residuals[: self.units],
                # A cut branch has none, and a cut U-Net adds none.
                "mid_block_additional_residual": residuals[-1]
                if len(residuals) > self.units
                else residuals[0].new_zeros(1, 1, 1, 1),
            }
            if residuals
            else {}
        )
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False, **control)
