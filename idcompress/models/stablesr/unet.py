"""The structure-conditioned U-Net of StableSR: Stable Diffusion's own, with SPADE inside every residual block.

SPADE scales and shifts a block's residual branch by features of the low-resolution image, which are looked up by
feature width. Its parameters live in the block (`...resnets.0.spade.*`), so whoever drops a block drops them too.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import ModelMixin, UNet2DConditionModel  # noqa: F401  saved pipelines look ModelMixin up on this module
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

StructureFeatures = Mapping[int, Tensor]
"""Feature width -> features (B, structure_channels, height, width)."""


class SpatiallyAdaptiveNorm(nn.Module):
    """GroupNorm(h) * (1 + gamma(c)) + beta(c), with gamma and beta computed by convolutions of the features c.

    Unlike the norm of the SPADE paper (arXiv 1903.07291), this one keeps a trained scale and shift of its own.
    """

    def __init__(self, channels: int, structure_channels: int, hidden_channels: int, num_groups: int, eps: float):
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, eps=eps)
        self.shared = nn.Conv2d(structure_channels, hidden_channels, 3, padding=1)
        self.gamma = nn.Conv2d(hidden_channels, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden_channels, channels, 3, padding=1)

    def forward(self, hidden_states: Tensor, structure: Tensor) -> Tensor:
        """Modulate hidden_states (B, channels, h, w) by structure (B, structure_channels, h, w)."""
        shared = F.relu(self.shared(structure))
        return self.norm(hidden_states) * (1 + self.gamma(shared)) + self.beta(shared)


class SpadeResnetBlock2D(ResnetBlock2D):
    """A residual block whose second convolution is followed by SPADE, before the residual sum."""

    def __init__(self, resnet: ResnetBlock2D, structure_channels: int, hidden_channels: int):
        if resnet.time_embedding_norm != "default" or resnet.skip_time_act or resnet.output_scale_factor != 1:
            raise ValueError(
                "SPADE blocks add the time embedding and sum unscaled; leave resnet_time_scale_shift, "
                "resnet_skip_time_act and resnet_out_scale_factor of the U-Net at their defaults"
            )
        # The parts are taken over from the plain block, so none is initialised twice.
        with torch.device("meta"):
            super().__init__(
                in_channels=resnet.in_channels,
                out_channels=resnet.out_channels,
                temb_channels=resnet.time_emb_proj.in_features,
                groups=resnet.norm1.num_groups,
            )
        for name, module in resnet.named_children():
            self.add_module(name, module)
        self.spade = SpatiallyAdaptiveNorm(
            resnet.out_channels, structure_channels, hidden_channels, resnet.norm2.num_groups, resnet.norm2.eps
        )
        # Set for the length of one U-Net forward: diffusers' blocks call their residual blocks with two tensors only.
        self.structure_features: StructureFeatures | None = None

    def forward(  # type: ignore[override]
        self, input_tensor: Tensor, temb: Tensor, structure_features: StructureFeatures | None = None
    ) -> Tensor:
        """Run the block on (B, in_channels, h, w), with temb (B, temb_channels) and the features of width w."""
        features = self.structure_features if structure_features is None else structure_features
        width = input_tensor.shape[-1]
        if features is None or width not in features:
            raise ValueError(
                f"structure_features must hold features of width {width}, got widths {sorted(features or ())}; "
                "compute them by the structure encoder from latents of the same size as sample"
            )
        hidden_states = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        hidden_states = hidden_states + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        hidden_states = self.conv2(self.dropout(self.nonlinearity(self.norm2(hidden_states))))
        hidden_states = self.spade(hidden_states, features[width])
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return input_tensor + hidden_states


class StableSRUNet2DConditionModel(UNet2DConditionModel):
    """Stable Diffusion's U-Net with structure conditioning.

    Args:
        structure_channels: channels of the structure encoder's features.
        spade_hidden_channels: width of the convolution that all of a SPADE layer shares; 128 in the published model.
        unet_config: the keys of `UNet2DConditionModel`.
    """

    def __init__(self, structure_channels: int = 256, spade_hidden_channels: int = 128, **unet_config: Any):
        super().__init__(**unet_config)
        self.register_to_config(structure_channels=structure_channels, spade_hidden_channels=spade_hidden_channels)
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            if block is not None:
                block.resnets = nn.ModuleList(
                    SpadeResnetBlock2D(resnet, structure_channels, spade_hidden_channels) for resnet in block.resnets
                )

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        # The config of this class holds all keys of its parent's, which **unet_config does not spell out.
        keys: set[str] = UNet2DConditionModel._get_init_keys(UNet2DConditionModel)
        return keys | {"structure_channels", "spade_hidden_channels"}

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        structure_features: StructureFeatures,
        **kwargs: Any,
    ) -> Any:
        """Predict the noise (or v) of a sample.

        Args:
            sample: noisy latents (B, in_channels, h, w), h and w multiples of 8 for four levels.
            timestep: training timestep, 0 .. 999, a number or (B,); never an index into a respaced list.
            encoder_hidden_states: embedding of the empty prompt, (B, tokens, cross_attention_dim).
            structure_features: feature width -> (B, structure_channels, height, width), at the same timestep.
            kwargs: as in `UNet2DConditionModel.forward`.

        Returns:
            `UNet2DConditionOutput`, or a tuple with return_dict=False.
        """
        blocks = [module for module in self.modules() if isinstance(module, SpadeResnetBlock2D)]
        for block in blocks:
            block.structure_features = structure_features
        try:
            return super().forward(sample, timestep, encoder_hidden_states, **kwargs)
        finally:
            for block in blocks:
                block.structure_features = None

    def own_inputs(self, zeros: Callable[..., Tensor], height: int, width: int) -> dict[str, Any]:
        """Arguments of a call that diffusers' U-Net does not have, for costs.

        Args:
            zeros: (channels, height, width) -> zeros for a batch.
            height, width: of the sample.
        """
        # Of a pruned model they may be fewer than the configuration says.
        channels = next(m for m in self.modules() if isinstance(m, SpadeResnetBlock2D)).spade.shared.in_channels
        levels = range(len(self.config.block_out_channels))
        return {"structure_features": {width >> n: zeros(channels, height >> n, width >> n) for n in levels}}

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any = None) -> None:
        """Recompute blocks in the backward pass; by default with the structure features they saw in the forward."""
        super().enable_gradient_checkpointing(gradient_checkpointing_func or _checkpoint)


def _checkpoint(module: nn.Module, *args: Any) -> Any:
    # The recomputation comes after forward has taken the features away, so they travel as an argument.
    if isinstance(module, SpadeResnetBlock2D):
        args = (*args, module.structure_features)
    return checkpoint(module.__call__, *args, use_reentrant=False)


def num_structure_levels(unet: UNet2DConditionModel) -> int:
    """Count the resolution levels, from the finest down, whose structure features a (pruned) U-Net still reads.

    Returns:
        the number to give to `prune_structure_encoder`; 4 for the published model, 3 at depths 7 to 9, 1 up to depth 3.
    """
    return sum(any(isinstance(module, SpadeResnetBlock2D) for module in block.modules()) for block in unet.up_blocks)
