"""The time-aware structure encoder of StableSR: features of the low-resolution latents at every U-Net resolution.

It is the encoder half of a small U-Net, built of diffusers' blocks; what each level ends with, just before it is
halved, goes through one more residual block to the channels that SPADE expects.
"""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import AttnDownBlock2D, DownBlock2D, UNetMidBlock2D
from torch import Tensor, nn

from .unet import num_structure_levels


class StableSRStructureEncoder(ModelMixin, ConfigMixin):
    """Latents and timestep -> one feature map per resolution.

    Args:
        in_channels: latent channels.
        out_channels: channels of every feature map.
        block_out_channels: trunk width of each level.
        down_block_types: "AttnDownBlock2D" or "DownBlock2D" per level.
        attention_head_dim: channels of one attention head, per level; the middle block has that of the last.
        layers_per_block: residual blocks of a level.
        norm_num_groups, norm_eps: of every GroupNorm.
        num_feature_levels: levels to compute, from the finest; None for all. Fewer means a smaller model whose
            remaining parameters keep their names, see `prune_structure_encoder`.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 256,
        block_out_channels: tuple[int, ...] = (256, 256, 512, 512),
        down_block_types: tuple[str, ...] = ("AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        attention_head_dim: tuple[int, ...] = (64, 64, 128, 128),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        num_feature_levels: int | None = None,
    ):
        super().__init__()
        full = len(block_out_channels)
        kept = full if num_feature_levels is None else num_feature_levels
        if not 1 <= kept <= full:
            raise ValueError(f"num_feature_levels must be in 1 .. {full} (or None for all), got {kept}")
        time_channels = 4 * block_out_channels[0]
        norm = {"resnet_eps": norm_eps, "resnet_groups": norm_num_groups, "temb_channels": time_channels}
        self.conv_in = nn.Conv2d(in_channels, block_out_channels[0], 3, padding=1)
        self.time_proj = Timesteps(block_out_channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(block_out_channels[0], time_channels)
        self.down_blocks = nn.ModuleList()
        self.feature_blocks = nn.ModuleList()
        previous = block_out_channels[0]
        for level, channels in enumerate(block_out_channels[:kept]):
            sizes = {"in_channels": previous, "out_channels": channels, "num_layers": layers_per_block}
            halve = level < kept - 1
            if down_block_types[level] == "AttnDownBlock2D":
                head_dim = attention_head_dim[level]
                downsample_type = "conv" if halve else None
                block = AttnDownBlock2D(attention_head_dim=head_dim, downsample_type=downsample_type, **sizes, **norm)
            elif down_block_types[level] == "DownBlock2D":
                block = DownBlock2D(add_downsample=halve, **sizes, **norm)
            else:
                raise ValueError(
                    f"down_block_types must be AttnDownBlock2D or DownBlock2D, got {down_block_types[level]}"
                )
            self.down_blocks.append(block)
            self.feature_blocks.append(
                ResnetBlock2D(
                    in_channels=channels,
                    out_channels=out_channels,
                    temb_channels=time_channels,
                    groups=norm_num_groups,
                    eps=norm_eps,
                )
            )
            previous = channels
        # The middle block belongs to the coarsest level: its output stands for it.
        self.mid_block = None
        if kept == full:
            self.mid_block = UNetMidBlock2D(in_channels=previous, attention_head_dim=attention_head_dim[-1], **norm)

    def forward(self, sample: Tensor, timestep: Tensor | float | int) -> dict[int, Tensor]:
        """Compute the structure features.

        Args:
            sample: scaled latents of the low-resolution image, (B, in_channels, h, w).
            timestep: the U-Net's timestep, 0 .. 999, a number or (B,).

        Returns:
            feature width -> features (B, out_channels, height, width), from the finest to the coarsest.
        """
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        temb = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))
        sample = self.conv_in(sample)
        features = {}
        for down_block, feature_block in zip(self.down_blocks, self.feature_blocks, strict=True):
            sample, states = down_block(sample, temb)
            feature = states[-1] if down_block.downsamplers is None else states[-2]
            if self.mid_block is not None and down_block.downsamplers is None:
                feature = self.mid_block(sample, temb)
            features[feature.shape[-1]] = feature_block(feature, temb)
        return features

    def follow_cut(self, unet: Any) -> "StableSRStructureEncoder":
        """The part of this encoder whose features a cut U-Net still reads; the encoder stays as it is."""
        return prune_structure_encoder(self, num_structure_levels(unet))


def prune_structure_encoder(encoder: StableSRStructureEncoder, num_feature_levels: int) -> StableSRStructureEncoder:
    """Return a smaller encoder that computes the finest levels only, with the same features at those.

    Args:
        encoder: left as it is; surviving parameters are shared with it and keep their names.
        num_feature_levels: what `num_structure_levels(unet)` says about the pruned U-Net.

    Raises:
        ValueError: more levels than the encoder has, or none.
    """
    present = len(encoder.feature_blocks)
    if not 1 <= num_feature_levels <= present:
        raise ValueError(f"the encoder has {present} feature levels, got num_feature_levels={num_feature_levels}")
    with torch.device("meta"):
        pruned = StableSRStructureEncoder.from_config(encoder.config, num_feature_levels=num_feature_levels)
    pruned.requires_grad_(next(encoder.parameters()).requires_grad)  # which assigning would turn on for both
    weights = encoder.state_dict(keep_vars=True)
    pruned.load_state_dict({name: weights[name] for name in pruned.state_dict()}, assign=True)
    return pruned.train(encoder.training)
