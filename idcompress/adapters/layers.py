"""Layers of a U-Net that a step passes by: their residual branches are left out, and what runs beside them goes on.

A layer is a residual block, which leaves its input or, where widths change, the shortcut's convolution of it, or a
transformer, which leaves its input. Layers are named as the whole U-Net names them, and so they are in its cuts.

Source: Li et al., AutoDiffusion, ICCV 2023, arXiv 2309.10438, whose layers of the ADM U-Net are the same two kinds.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from diffusers import Transformer2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ..errors import IdcError
from .pipeline import with_components
from .unet import changed


def names_of_layers(unet: nn.Module) -> tuple[str, ...]:
    """The layers that can be passed by, in the order in which the U-Net names them."""
    return tuple(
        name
        for name, module in unet.named_modules()
        if isinstance(module, Transformer2DModel)
        or (isinstance(module, ResnetBlock2D) and module.upsample is None and module.downsample is None)
    )


def passing_by(pipeline: Any, skip: Sequence[str]) -> Any:
    """A pipeline whose U-Net passes some layers by, over the same parameters; the same one for none.

    Args:
        pipeline: whole, or cut.
        skip: names of layers; those that a cut has dropped are left out anyway.
    """
    return with_components(pipeline, {"unet": without_layers(pipeline.unet, skip)}) if skip else pipeline


def without_layers(unet: Any, skip: Sequence[str]) -> Any:
    """The same for a U-Net."""
    return changed(unet, ("without", *skip), partial(_replace_layers, skip=skip)) if skip else unet


def _replace_layers(unet: nn.Module, skip: Sequence[str]) -> None:
    present = names_of_layers(unet)
    for name in skip:
        if name in present:
            unet.set_submodule(name, PassedBy(unet.get_submodule(name)))


def check_layers(unet: nn.Module, skip: Sequence[str]) -> None:
    """Raise IdcError for a layer that this U-Net has not."""
    present = names_of_layers(unet) if skip else ()
    for name in skip:
        if name not in present:
            has = f"it has {len(present)}, {present[0]} to {present[-1]}" if present else "it has none"
            raise IdcError(f"a step of the plan passes {name!r} by, which is no such layer of this U-Net; {has}")


class PassedBy(nn.Module):
    """In place of a layer: what is left of it without its residual branch."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.transformer = isinstance(layer, Transformer2DModel)
        self.scale = float(getattr(layer, "output_scale_factor", 1.0))
        self.conv_shortcut = getattr(layer, "conv_shortcut", None)
        if not self.transformer:  # what a U-Net's shape is read from
            self.in_channels, self.out_channels = layer.in_channels, layer.out_channels

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        if self.transformer:
            return (hidden_states,)
        left = hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states)
        return left / self.scale
