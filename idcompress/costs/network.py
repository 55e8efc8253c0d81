"""Inputs of one network call, and networks without their weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def network_inputs(
    network: nn.Module,
    *,
    sample_size: int | tuple[int, int] | None = None,
    batch_size: int = 1,
    encoder_tokens: int = 77,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Keyword arguments for one call of a network of every step, from its configuration.

    A network that takes more than diffusers' own says what by its method `own_inputs(zeros, height, width)`.

    Args:
        network: read for its configuration and the dtype and device of its parameters.
        sample_size: side of the latents, or (height, width); None: that of the configuration.
        batch_size: images per call.
        encoder_tokens: length of the text embedding.
        device: of the inputs; None: the network's own.

    Returns:
        Zeros: `sample` (B, in_channels, h, w), `timestep` (B,), and, where they belong, `encoder_hidden_states`
        (B, tokens, cross_attention_dim), `controlnet_cond` at pixel size and the network's own inputs. A U-Net gets
        no control residuals.
    """
    config: Any = network.config
    parameter = next(network.parameters())
    device = parameter.device if device is None else torch.device(device)
    size = config.sample_size if sample_size is None else sample_size
    height, width = (size, size) if isinstance(size, int) else size

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch_size, *shape, dtype=parameter.dtype, device=device)

    inputs: dict[str, Any] = {
        "sample": zeros(config.in_channels, height, width),
        "timestep": torch.zeros(batch_size, dtype=torch.int64, device=device),
    }
    if "cross_attention_dim" in config:
        features = config.cross_attention_dim
        inputs["encoder_hidden_states"] = zeros(encoder_tokens, features if isinstance(features, int) else features[0])
    if "conditioning_embedding_out_channels" in config:
        scale = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
        inputs["controlnet_cond"] = zeros(config.conditioning_channels, height * scale, width * scale)
    own_inputs: Any = getattr(network, "own_inputs", None)
    return inputs if own_inputs is None else inputs | own_inputs(zeros, height, width)


def on_meta(network: Network) -> Network:
    """A copy of a network's structure on the meta device; the weights are never copied."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in network.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(network, memo)


def inputs_on_meta(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same inputs, nested or not, with every tensor on the meta device."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to("meta")
        if isinstance(value, Mapping):
            return {key: moved(item) for key, item in value.items()}
        return type(value)(moved(item) for item in value) if isinstance(value, (list, tuple)) else value

    return {key: moved(value) for key, value in inputs.items()}


class Call(nn.Module):
    """One method of a network as a network of its own, to be counted and timed like any other."""

    def __init__(self, network: nn.Module, method: str) -> None:
        super().__init__()
        self.network = network
        self.method = method

    def forward(self, **inputs: Any) -> Any:
        return getattr(self.network, self.method)(**inputs)


def autoencoder_inputs(vae: nn.Module, image_px: int, *, batch_size: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments of `encode` and of `decode` for images of one size, on the autoencoder's own device.

    One that takes more than diffusers' own says what by its method `own_inputs(image)`.
    """
    config: Any = vae.config
    like = next(vae.parameters())
    side = image_px // 2 ** (len(config.block_out_channels) - 1)
    encode: dict[str, Any] = {"x": like.new_zeros(batch_size, 3, image_px, image_px)}
    decode: dict[str, Any] = {"z": like.new_zeros(batch_size, config.latent_channels, side, side)}
    own_inputs: Any = getattr(vae, "own_inputs", None)
    to_encode, to_decode = ({}, {}) if own_inputs is None else own_inputs(encode["x"])
    return encode | to_encode, decode | to_decode
