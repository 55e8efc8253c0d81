"""Networks of a pipeline as functions of tensors with names, to be written as ONNX graphs.

The wrappers are for diffusers' own components; those of a task alone stand with the task.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.plan import Plan
from ..core.reuse import held_depths
from .deep_features import call_unet, giving
from .pipeline import vae_scale_factor, with_components
from .side_networks import cut_networks
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
    """Random inputs of all graphs by name, and what torch makes of them by name and as "graph/name".

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
        values |= {f"{graph.name}/{name}": made for name, made in zip(graph.outputs, outputs, strict=True)}
    return values


def graphs_of_plan(
    graphs_of: Callable[[Any], list[Graph]], pipeline: Any, plan: Plan, sides: Sequence[str]
) -> list[Graph]:
    """The graphs of a pipeline that follows a plan: of the networks of a step one for each depth, as NAME_DEPTH.

    Where steps take hidden states from earlier ones, U-Nets give those out as hidden_DEPTH, beside the model output,
    and one of a smaller depth takes its own in.

    Args:
        graphs_of: gives the graphs of a pipeline, see `Task.graphs`.
        plan: with what is really computed.
        sides: names of the side networks; of a depth they are there if a step calls them.
    """
    kept = {step.depth for step in plan.steps if step.depth is not None}
    hold = held_depths(plan)
    found = []
    for graph in graphs_of(with_components(pipeline, {"unet": giving(pipeline.unet, hold)})):
        if graph.name != "unet":
            found.append(graph)
            continue
        found.append(_with_features(graph, None, hold))
        for depth in sorted(kept, reverse=True):
            stage = with_components(pipeline, cut_networks(pipeline.components, depth))
            called = [*(sides if any(s.depth == depth and s.refresh for s in plan.steps) else ()), "unet"]
            of_stage = {g.name: g for g in graphs_of(with_components(stage, {"unet": giving(stage.unet, hold)}))}
            of_stage["unet"] = _with_features(of_stage["unet"], depth, hold)
            found += [replace(of_stage[name], name=f"{name}_{depth}") for name in called]
    return found


def _with_features(graph: Graph, depth: int | None, kept: Collection[int]) -> Graph:
    """A U-Net's graph that gives hidden states out and, cut to a depth that is kept, takes one in."""
    given = [f"hidden_{depth}"] if depth in kept else []
    depths = sorted(one for one in kept if depth is None or one < depth)
    module = _Features(graph.module, bool(given), depths)
    outputs = [*graph.outputs, *(f"hidden_{one}" for one in depths)]
    return replace(graph, module=module, inputs=[*graph.inputs, *given], outputs=outputs)


class _Features(nn.Module):
    """A U-Net's graph with the hidden state at its cut as its last input, and those at other cuts as last outputs."""

    def __init__(self, module: nn.Module, is_given: bool, depths: list[int]) -> None:
        super().__init__()
        self.module, self.is_given, self.depths = module, is_given, depths

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        arguments, deep = (inputs[:-1], inputs[-1]) if self.is_given else (inputs, None)
        outputs, found = call_unet(self.module, *arguments, deep_features=deep)
        return (*outputs, *(found[depth] for depth in self.depths))


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
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *residuals: Tensor, **deep: Tensor
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
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False, **control, **deep)
