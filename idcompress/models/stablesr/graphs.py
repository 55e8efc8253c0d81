"""The models of StableSR as functions of tensors alone, to be traced as ONNX graphs.

Dictionaries and optional arguments have no place there: structure features travel in a row, from the finest level on.
"""

from typing import Any

from torch import Tensor, nn


class Encoder(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] -> mean and deviation of its latents, scaled, and what the decoder wraps in."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.scale = vae, vae.config.scaling_factor

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        posterior, features = self.vae.encode(image, return_features=True)
        return (posterior.mean * self.scale, posterior.std * self.scale, *features)


class Decoder(nn.Module):
    """Scaled latents, the fidelity weight and the encoder's features -> image."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor, fidelity_weight: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        wrapped = {"fidelity_weight": fidelity_weight, "features": features}
        return (self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False, **wrapped)[0],)


class Structure(nn.Module):
    """Latents of the image and a timestep -> structure features."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.structure_encoder = pipeline.structure_encoder

    def forward(self, image_latents: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.structure_encoder(image_latents, timestep).values())


class UNet(nn.Module):
    """The empty prompt, the only one there is, comes as a constant."""

    prompt: Tensor

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.unet = pipeline.unet
        self.register_buffer("prompt", pipeline.encode_prompt(1))

    def forward(self, sample: Tensor, timestep: Tensor, *structure: Tensor, **deep: Tensor) -> tuple[Tensor, ...]:
        prompt = self.prompt.expand(sample.shape[0], -1, -1)
        return self.unet(sample, timestep, prompt, _ByWidth(structure), return_dict=False, **deep)


class _ByWidth(dict[int, Tensor]):
    """Structure features by width, which is a tensor while a network is traced: each level finds its own for good."""

    def __init__(self, structure: tuple[Tensor, ...]) -> None:
        super().__init__({int(features.shape[-1]): features for features in structure})

    def __contains__(self, width: Any) -> bool:
        return super().__contains__(int(width))

    def __getitem__(self, width: Any) -> Tensor:
        return super().__getitem__(int(width))
