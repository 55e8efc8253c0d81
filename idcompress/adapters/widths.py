"""Networks whose layers are narrower than their configuration says: widths as values, and modules that have them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

Widths = Mapping[str, list[int]]  # layer -> outputs and inputs, of a norm its channels


def widths_of(network: nn.Module) -> dict[str, list[int]]:
    """The widths of every convolution, linear layer and norm."""
    found = {}
    for name, layer in network.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm)) and weight is not None:
            found[name] = list(weight.shape[:2])
    return found


def changed_widths(whole: nn.Module, pruned: nn.Module) -> dict[str, list[int]]:
    """The widths of those layers that are narrower than in the whole network."""
    before = widths_of(whole)
    return {name: widths for name, widths in widths_of(pruned).items() if widths != before[name]}


def with_widths(network: Any, widths: Widths) -> Any:
    """A copy of a network with the first so many channels of some layers.

    Args:
        network: stays as it is; on any device, also the meta device.
        widths: of the layers that are narrower in the copy.

    Returns:
        the narrower network, whose configuration holds the widths; which channels it should have, its weights say.

    Raises:
        ValueError: no such layer, or one that is narrower already.
    """
    narrow = copy.deepcopy(network)
    layers = dict(narrow.named_modules())
    for name, shape in widths.items():
        layer = layers.get(name)
        weight = getattr(layer, "weight", None)
        present = [] if weight is None else list(weight.shape[:2])
        if len(shape) != len(present) or any(not 0 < new <= old for new, old in zip(shape, present, strict=True)):
            raise ValueError(f"the network has no layer {name!r} that can be cut to {shape}")
        _cut(layer, shape)
    for module in narrow.modules():
        _agree(module)
    narrow.register_to_config(widths={name: list(shape) for name, shape in widths.items()})
    return narrow


def _cut(layer: Any, shape: list[int]) -> None:
    kept = tuple(slice(number) for number in shape)
    layer.weight = nn.Parameter(layer.weight.detach()[kept].clone(), requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[: shape[0]].clone(), requires_grad=layer.bias.requires_grad)
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = shape
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = shape
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = shape[0]
    else:
        layer.normalized_shape = tuple(shape)


def _agree(module: Any) -> None:
    """Let the numbers that a block notes about its layers be those of its layers."""
    if isinstance(module, (Upsample2D, Downsample2D)) and isinstance(getattr(module, "conv", None), nn.Conv2d):
        module.channels, module.out_channels = module.conv.in_channels, module.conv.out_channels
    elif isinstance(module, ResnetBlock2D):
        module.in_channels, module.out_channels = module.conv1.in_channels, module.conv2.out_channels
    elif isinstance(module, Attention):
        module.query_dim, module.inner_dim = module.to_q.in_features, module.to_q.out_features
        module.cross_attention_dim, module.inner_kv_dim = module.to_k.in_features, module.to_k.out_features
        module.out_dim = module.to_out[0].out_features
