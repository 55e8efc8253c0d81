"""Exact savings that need a fixed use: constants are computed once and the weights behind them go.

- In a cut U-Net the first kept decoder layer gets zeros in half of its channels: what they contribute is constant.
- Over a fixed list of timesteps the time embedding is a table, and so is what every residual layer makes of it.
- Under a fixed prompt the keys and values of cross-attention are constant.

None of it can be said in a stock configuration, so it is for use in process and for ONNX, not for diffusers' folders.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .unet import ZeroHidden


def fold_pipeline(pipeline: Any) -> dict[str, int]:
    """Fold in place all that is fixed in a pipeline: zeros at the cut, its scheduler's list, its prompt.

    A pipeline that is always called with the same prompt says so by a method `fix_prompt`, which stores the prompt's
    embedding in place of the text encoder and returns it, (1, tokens, width).

    Returns:
        What was folded -> parameters saved.
    """
    unet, timesteps = pipeline.unet, pipeline.scheduler.config.get("timesteps")
    saved = {"zeros at the cut": slim_first_layer(unet)}
    networks = [part for part in pipeline.components.values() if hasattr(part, "time_embedding")]
    if timesteps is not None:
        saved["timesteps"] = sum(fold_timesteps(network, timesteps) for network in networks)
    if hasattr(pipeline, "fix_prompt"):
        text_encoder = pipeline.text_encoder
        saved["prompt"] = fold_prompt(unet, pipeline.fix_prompt())
        if text_encoder is not None:
            saved["text encoder"] = _size(text_encoder)
    for network in networks:
        network.save_pretrained = _refuse_to_save
    return saved


def _refuse_to_save(*_: Any, **__: Any) -> None:
    raise ValueError(
        "a folded network has no configuration that says so; save the pipeline that is loaded without fold"
    )


class _WithoutZeros(nn.Module):
    """A module of the skip's channels, called with zeros and skip together."""

    def __init__(self, module: nn.Module, hidden_channels: int) -> None:
        super().__init__()
        self.module, self.hidden_channels = module, hidden_channels

    def forward(self, sample: Tensor) -> Tensor:
        return self.module(sample[:, self.hidden_channels :])


class _ConvOfConstantAndSkip(nn.Module):
    """The convolution of channels that are constant over the image, kept as one map, and of the skip's."""

    def __init__(self, conv: nn.Conv2d, constant: Tensor) -> None:
        """Take the leading channels of `conv` for constants of these values, (hidden_channels,)."""
        super().__init__()
        hidden = len(constant)
        self.conv = copy.deepcopy(conv)
        self.conv.weight = nn.Parameter(conv.weight[:, hidden:].clone(), requires_grad=False)
        self.conv.in_channels -= hidden
        kernel = torch.einsum("ochw,c->ohw", conv.weight[:, :hidden].float(), constant.float())
        self.kernel = nn.Parameter(kernel[:, None].to(conv.weight.dtype), requires_grad=False)

    def forward(self, sample: Tensor) -> Tensor:
        # The border pads with zeros, so the map is constant in the interior only.
        ones = sample.new_ones(1, 1, *sample.shape[2:])
        return self.conv(sample) + F.conv2d(ones, self.kernel, padding=self.conv.padding)


@torch.no_grad()
def slim_first_layer(unet: Any) -> int:
    """Take the zeros out of a cut U-Net's first kept decoder layer, in place.

    Returns:
        Parameters saved; 0 for an uncut U-Net, and where a group of the first GroupNorm mixes zeros and skip: there
        the zeros' channels depend on the skip.
    """
    if not isinstance(unet.mid_block, ZeroHidden):
        return 0
    resnet, hidden = next(iter(unet.up_blocks)).resnets[0], unet.mid_block.hidden_channels
    norm, shortcut = resnet.norm1, resnet.conv_shortcut
    group = norm.num_channels // norm.num_groups
    if hidden % group:
        return 0
    before = _size(resnet)
    skip_norm = nn.GroupNorm((norm.num_channels - hidden) // group, norm.num_channels - hidden, norm.eps)
    skip_norm.weight, skip_norm.bias = (_part(p, slice(hidden, None)) for p in (norm.weight, norm.bias))
    skip_shortcut = copy.deepcopy(shortcut)
    skip_shortcut.weight = _part(shortcut.weight, (slice(None), slice(hidden, None)))
    skip_shortcut.in_channels -= hidden
    resnet.conv1 = _ConvOfConstantAndSkip(resnet.conv1, resnet.nonlinearity(norm.bias[:hidden]))
    resnet.norm1 = _WithoutZeros(skip_norm, hidden)
    resnet.conv_shortcut = _WithoutZeros(skip_shortcut, hidden)
    return before - _size(resnet)


class _ListedTimestep(nn.Module):
    """Timesteps (B,) as rows of the unit matrix over a list, (B, steps); NaN for one that is not listed."""

    timesteps: Tensor

    def __init__(self, timesteps: Tensor) -> None:
        super().__init__()
        self.register_buffer("timesteps", timesteps)

    def forward(self, timesteps: Tensor) -> Tensor:
        hit = timesteps[:, None].eq(self.timesteps)  # (B, steps)
        return torch.where(hit.any(1, keepdim=True), hit.float(), torch.nan)


class _AsItIs(nn.Module):
    """In place of the time embedding, which takes a condition beside its input."""

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        return sample


@torch.no_grad()
def fold_timesteps(network: Any, timesteps: Sequence[int]) -> int:
    """Fold a network's time embedding, and what every residual layer projects it to, in place.

    Args:
        timesteps: the only ones that the network can be called with from now on; others give NaN.

    Returns:
        Parameters saved.
    """
    before = _size(network)
    device, dtype = network.device, network.dtype
    listed = torch.tensor(sorted(set(timesteps)), dtype=torch.int64, device=device)
    embedding = network.time_embedding(network.time_proj(listed).to(dtype))
    one = torch.ones((), dtype=torch.float32)
    for resnet in network.modules():
        projection = getattr(resnet, "time_emb_proj", None)
        if projection is None:
            continue
        table = projection(embedding if resnet.skip_time_act else resnet.nonlinearity(embedding))
        folded = nn.Linear(len(listed), table.shape[1], bias=False, device=device, dtype=dtype)
        # The layer's activation comes before the table: of the unit matrix it leaves a multiple.
        scale = one if resnet.skip_time_act else resnet.nonlinearity(one)
        folded.weight = nn.Parameter((table.float() / scale.to(device)).T.to(dtype), requires_grad=False)
        resnet.time_emb_proj = folded
    network.time_proj, network.time_embedding = _ListedTimestep(listed), _AsItIs()
    return before - _size(network)


class _Constant(nn.Module):
    """One value for the whole batch, whatever comes in."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value, requires_grad=False)

    def forward(self, sample: Tensor) -> Tensor:
        return self.value.expand(sample.shape[0], -1, -1)


@torch.no_grad()
def fold_prompt(unet: Any, encoder_hidden_states: Tensor) -> int:
    """Fold the keys and values of every cross-attention under one prompt, in place.

    Args:
        encoder_hidden_states: (1, tokens, width), the only one that the U-Net can be called with from now on.

    Returns:
        Parameters saved, the constants counted against it.
    """
    before = _size(unet)
    for module in unet.modules():
        attention = getattr(module, "attn2", None)
        if attention is not None:
            attention.to_k = _Constant(attention.to_k(encoder_hidden_states))
            attention.to_v = _Constant(attention.to_v(encoder_hidden_states))
    return before - _size(unet)


def _part(parameter: Tensor, index: Any) -> nn.Parameter:
    return nn.Parameter(parameter[index].clone(), requires_grad=False)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
