"""Stable Diffusion's autoencoder with controllable feature wrapping: encoder features of the low-resolution image
correct what the decoder makes of the sampled latents, by a weight that trades realism (0) for fidelity (1)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL, ModelMixin  # noqa: F401  saved pipelines look ModelMixin up on this module
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.resnet import ResnetBlock2D
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

_RESIDUAL_SCALE = 0.2
_NORM_EPS = 1e-6  # of all norms of the autoencoder


class ResidualDenseBlock(nn.Module):
    """Five 3x3 convolutions, each of the first four reading the input and all outputs before it (ESRGAN)."""

    def __init__(self, channels: int, growth_channels: int):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels + i * growth_channels, channels if i == 4 else growth_channels, 3, padding=1)
            for i in range(5)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, channels, h, w) -> the same shape."""
        outputs = [hidden_states]
        for conv in self.convs[:-1]:
            outputs.append(F.leaky_relu(conv(torch.cat(outputs, dim=1)), 0.2))
        return hidden_states + _RESIDUAL_SCALE * self.convs[-1](torch.cat(outputs, dim=1))


class ResidualInResidualDenseBlock(nn.Module):
    """Three dense blocks with a scaled residual around them (ESRGAN's RRDB)."""

    def __init__(self, channels: int, growth_channels: int):
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualDenseBlock(channels, growth_channels) for _ in range(3)))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, channels, h, w) -> the same shape."""
        return hidden_states + _RESIDUAL_SCALE * self.blocks(hidden_states)


class FeatureFusion(nn.Module):
    """The correction that feature wrapping adds to a decoder level."""

    def __init__(self, channels: int, growth_channels: int, norm_num_groups: int):
        super().__init__()
        resnet = {"temb_channels": None, "groups": norm_num_groups, "eps": _NORM_EPS, "out_channels": channels}
        self.reduce = ResnetBlock2D(in_channels=2 * channels, **resnet)
        self.dense = nn.Sequential(*(ResidualInResidualDenseBlock(channels, growth_channels) for _ in range(2)))
        self.refine = ResnetBlock2D(in_channels=channels, **resnet)

    def forward(self, feature: Tensor, hidden_states: Tensor) -> Tensor:
        """Encoder feature and decoder state, (B, channels, h, w) each -> correction of that shape."""
        reduced = self.reduce(torch.cat([feature, hidden_states], dim=1), temb=None)
        return self.refine(self.dense(reduced), temb=None)


class StableSRAutoencoderKL(AutoencoderKL):
    """`AutoencoderKL` whose decoder can be corrected by encoder features.

    Args:
        fusion_levels: encoder levels (0 is the finest) whose features are wrapped into the decoder level of the same
            resolution; (1, 2) in the published model.
        fusion_growth_channels: growth of the dense blocks.
        autoencoder_config: the keys of `AutoencoderKL`.
    """

    def __init__(
        self, fusion_levels: Sequence[int] = (1, 2), fusion_growth_channels: int = 32, **autoencoder_config: Any
    ):
        super().__init__(**autoencoder_config)
        self.register_to_config(fusion_levels=tuple(fusion_levels), fusion_growth_channels=fusion_growth_channels)
        widths, groups = self.config.block_out_channels, self.config.norm_num_groups
        if list(fusion_levels) != sorted(set(fusion_levels)) or not set(fusion_levels) <= set(range(len(widths))):
            raise ValueError(f"fusion_levels must ascend within 0 .. {len(widths) - 1}, got {tuple(fusion_levels)}")
        self.fusion_blocks = nn.ModuleDict(
            {str(level): FeatureFusion(widths[level], fusion_growth_channels, groups) for level in fusion_levels}
        )

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        # The config of this class holds all keys of its parent's, which **autoencoder_config does not spell out.
        keys: set[str] = AutoencoderKL._get_init_keys(AutoencoderKL)
        return keys | {"fusion_levels", "fusion_growth_channels"}

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True, return_features: bool = False) -> Any:
        """Encode an image.

        Args:
            x: image (B, 3, H, W) in [-1, 1].
            return_dict: as in `AutoencoderKL.encode`; not used with features.
            return_features: also return the features that `decode` wraps in.

        Returns:
            as `AutoencoderKL.encode`, or (latent_dist, features): the posterior, unscaled, (B, 4, H/8, W/8), and a
            tuple with the last state of every fusion level before it is halved, from fine to coarse.
        """
        if not return_features:
            return super().encode(x, return_dict=return_dict)
        encoder = self.encoder
        hidden_states = encoder.conv_in(x)
        features = []
        for level, block in enumerate(encoder.down_blocks):
            for resnet in block.resnets:
                hidden_states = resnet(hidden_states, temb=None)
            if str(level) in self.fusion_blocks:
                features.append(hidden_states)
            for downsampler in block.downsamplers or ():
                hidden_states = downsampler(hidden_states)
        hidden_states = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(hidden_states))))
        if self.quant_conv is not None:
            hidden_states = self.quant_conv(hidden_states)
        return DiagonalGaussianDistribution(hidden_states), tuple(features)

    @torch.inference_mode()
    def own_inputs(self, image: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of `encode` and of `decode` that diffusers' autoencoder does not have, for costs.

        Args:
            image: what is encoded, (B, 3, H, W).
        """
        return {"return_features": True}, {"features": self.encode(image, return_features=True)[1]}

    @apply_forward_hook
    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        features: Sequence[Tensor] | None = None,
        fidelity_weight: float = 0.5,
    ) -> Any:
        """Decode latents, corrected by the features of an image.

        Args:
            z: latents divided by `scaling_factor`, (B, 4, h, w).
            features: what `encode(image, return_features=True)` gave; None decodes as `AutoencoderKL` does.
            fidelity_weight: 0 is the plain decoder exactly, 1 the full correction the wrapping was trained with.

        Returns:
            `DecoderOutput` (or a tuple with return_dict=False) with the image (B, 3, 8h, 8w), not clamped to [-1, 1].
        """
        if features is None or fidelity_weight == 0:
            return super().decode(z, return_dict=return_dict, generator=generator)
        by_level = dict(zip(self.fusion_blocks, features, strict=True))
        decoder = self.decoder
        hidden_states = z if self.post_quant_conv is None else self.post_quant_conv(z)
        hidden_states = decoder.mid_block(decoder.conv_in(hidden_states))
        for level, block in zip(reversed(range(len(decoder.up_blocks))), decoder.up_blocks, strict=True):
            for resnet in block.resnets:
                hidden_states = resnet(hidden_states, temb=None)
            if str(level) in by_level:
                correction = self.fusion_blocks[str(level)](by_level[str(level)], hidden_states)
                hidden_states = hidden_states + fidelity_weight * correction
            for upsampler in block.upsamplers or ():
                hidden_states = upsampler(hidden_states)
        image = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(hidden_states)))
        return DecoderOutput(sample=image) if return_dict else (image,)
