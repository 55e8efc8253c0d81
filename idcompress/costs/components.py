"""The networks of a pipeline, each with one call of it: what is called at every step, once per image, or never."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..adapters.pipeline import vae_scale_factor
from .macs import count_gmacs
from .network import Call, autoencoder_inputs, network_inputs
from .parameters import count_parameters

COUNTS = ("params", "file_params", "gmacs", "gmacs_with_attention")


@dataclass(frozen=True)
class Component:
    """A network, or one half of the autoencoder.

    Attributes:
        called: "every step", "once" (per image) or "never".
        network: to be called as network(**inputs).
        params: without the time embedding where it is the U-Net, the paper's rule.
        file_params: all parameters.
    """

    name: str
    called: str
    network: nn.Module
    inputs: dict[str, Any]
    params: int
    file_params: int

    def costs(self) -> dict[str, Any]:
        """Parameters, and MACs of the call: convolutions and linear layers, and with attention."""
        plain, with_attention = count_gmacs(self.network, self.inputs)
        return {
            "called": self.called,
            "params": self.params,
            "file_params": self.file_params,
            "gmacs": plain,
            "gmacs_with_attention": with_attention,
        }


def components_of(
    pipeline: Any,
    networks: Sequence[nn.Module],
    image_px: int,
    *,
    encoder_tokens: int,
    encodes_image: bool = True,
    batch_size: int = 1,
    branches: int = 1,
) -> list[Component]:
    """A pipeline's networks with inputs of one size, on their own device.

    Args:
        pipeline: with `components`, or what has the same attributes.
        networks: those of every step, the U-Net first.
        image_px: side of the images.
        encoder_tokens: length of the text embedding.
        encodes_image: whether the autoencoder's encoder is called, once per image.
        batch_size: images of every call.
        branches: samples per image in a call of the networks of every step, by guidance.
    """
    names = {id(component): name for name, component in pipeline.components.items()}
    latents = image_px // vae_scale_factor(pipeline)
    found = []
    for network in networks:
        in_file, paper = count_parameters(network)
        samples = batch_size * branches
        inputs = network_inputs(network, sample_size=latents, batch_size=samples, encoder_tokens=encoder_tokens)
        paper = paper if network is pipeline.unet else in_file
        found.append(Component(names[id(network)], "every step", network, inputs, paper, in_file))
    encoded = "once" if encodes_image else "never"
    vae = pipeline.vae
    sizes = {name: parameter.numel() for name, parameter in vae.named_parameters()}
    encoder = sum(size for name, size in sizes.items() if name.startswith(("encoder.", "quant_conv.")))
    decoder = sum(sizes.values()) - encoder
    encode, decode = autoencoder_inputs(vae, image_px, batch_size=batch_size)
    found.append(Component("vae_encoder", encoded, Call(vae, "encode"), encode, encoder, encoder))
    found.append(Component("vae_decoder", "once", Call(vae, "decode"), decode, decoder, decoder))
    text = pipeline.components.get("text_encoder")
    if text is not None:
        size = count_parameters(text)[0]
        ids = torch.zeros(batch_size, encoder_tokens, dtype=torch.int64, device=text.device)
        found.append(Component("text_encoder", "once", text, {"input_ids": ids}, size, size))
    return found
