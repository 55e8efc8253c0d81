"""Multiply-accumulates of one network call, in billions: convolutions and linear layers, and with attention products.

Papers' figures for Stable Diffusion leave the attention products out; both are given. Counted on the meta device
from the shapes of the operations (half of torch's FLOPs): no weights, no memory, no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.flop_counter import FlopCounterMode

from .cost import Cost
from .network import inputs_on_meta, network_inputs, on_meta

if TYPE_CHECKING:
    from torch import nn

_ATTENTION = ("bmm", "baddbmm", "attention")
_COUNTED: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], tuple[float, float]]] = WeakKeyDictionary()


def count_gmacs(network: nn.Module, inputs: Mapping[str, Any]) -> tuple[float, float]:
    """Billions of multiply-accumulates of `network(**inputs)`: convolution and linear, and with attention."""
    return gmacs_by_module(network, inputs)[""]


def gmacs_by_module(network: nn.Module, inputs: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The same of every submodule that multiplies anything, by its name; "" is the whole network."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on_meta(network)(**inputs_on_meta(inputs))
    counted = {}
    for path, flops in counter.get_flop_counts().items():
        attention = sum(n for operation, n in flops.items() if any(part in str(operation) for part in _ATTENTION))
        total = sum(flops.values())
        name = "" if path == "Global" else path.partition(".")[2]  # paths begin with the network's class
        if path == "Global" or name:
            counted[name] = ((total - attention) / 2e9, total / 2e9)
    return counted


def unet_macs(
    network: nn.Module, sample_size: int | tuple[int, int] | None = None, *, encoder_tokens: int = 77
) -> tuple[float, float]:
    """GMACs of one call for one image: convolution and linear, and with attention.

    Args:
        network: a U-Net, full or pruned, or a network beside it, on any device.
        sample_size: side of the latents, or (height, width); None: that of the configuration.
        encoder_tokens: length of the text embedding.
    """
    shapes = tuple((name, parameter.shape) for name, parameter in network.named_parameters())  # it may be narrowed
    key, counted = (sample_size, encoder_tokens, shapes), _COUNTED.setdefault(network, {})
    if key not in counted:
        inputs = network_inputs(network, sample_size=sample_size, encoder_tokens=encoder_tokens, device="meta")
        counted[key] = count_gmacs(network, inputs)
    return counted[key]


class Macs(Cost):
    """GMACs of one call of each network, one image: `gmacs`, `gmacs_with_attention`."""

    unit = "GMAC"

    def __init__(self, *, sample_size: int | None = None, encoder_tokens: int = 77) -> None:
        """Args: sample_size: side of the latents in place of the configured one; encoder_tokens: of the text."""
        self.sample_size = sample_size
        self.encoder_tokens = encoder_tokens

    def measure(
        self, modules: Sequence[nn.Module], inputs: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, float]:
        if inputs is None:
            counts = [unet_macs(m, self.sample_size, encoder_tokens=self.encoder_tokens) for m in modules]
        else:
            counts = [count_gmacs(module, given) for module, given in zip(modules, inputs, strict=True)]
        return {"gmacs": sum(plain for plain, _ in counts), "gmacs_with_attention": sum(both for _, both in counts)}
