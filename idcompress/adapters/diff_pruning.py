"""Group-wise width pruning of denoising networks by torch-pruning: what depends on one another shrinks together."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ..errors import IdcError
from .widths import changed_widths

Loss = Callable[[Mapping[str, Any], int], Tensor]  # of networks by name, at a timestep


def check_package() -> None:
    """Raise IdcError unless torch-pruning is installed."""
    if importlib.util.find_spec("torch_pruning") is None:
        raise IdcError("prune=diff_pruning needs a package that is not here; pip install 'torch-pruning>=1.6'")


def denoising_networks(components: Mapping[str, Any]) -> dict[str, Any]:
    """The networks of a pipeline that are called at every timestep: the U-Net, and what gives it features."""
    return {name: part for name, part in components.items() if hasattr(part, "time_embedding")}


def group_widths(networks: Mapping[str, Any], loss: Loss, ratio: float) -> dict[str, dict[str, list[int]]]:
    """The widths that pruning by a ratio leaves: network -> layer -> widths, of those layers that change.

    They follow from the structure alone: every group of layers loses the same share of its channels.
    """
    check_package()
    import torch_pruning

    copies = _trainable(networks)
    _prune(copies, loss, ratio, torch_pruning.importance.GroupMagnitudeImportance())
    return {name: changed_widths(networks[name], copies[name]) for name in networks}


def prune_by_taylor(
    networks: Mapping[str, Any], loss: Loss, timesteps: Iterable[int], *, ratio: float, threshold: float
) -> tuple[dict[str, dict[str, Tensor]], int]:
    """The weights of the channels that matter most, by first-order importance over informative timesteps.

    Args:
        networks: whole ones; they stay as they are.
        loss: of networks that stand for these, on one fixed batch with fixed noise.
        timesteps: rising from the least noisy one. Gradients are summed up to the first whose loss is at most
            `threshold` times the largest so far.

    Returns:
        network -> state of the pruned one, and the number of timesteps that were summed.

    Source: Fang et al., Diff-Pruning, arXiv 2305.10924, eq. 7 and Alg. 1; importance and groups of torch-pruning.
    """
    check_package()
    import torch_pruning

    copies = _trainable(networks)
    largest, used = 0.0, 0
    for timestep in timesteps:
        value = loss(copies, timestep)
        largest = max(largest, float(value.detach()))
        if float(value.detach()) <= threshold * largest:
            break
        value.backward()
        used += 1
    importance = torch_pruning.importance.GroupTaylorImportance(multivariable=False)
    _prune(copies, loss, ratio, importance)
    return {name: network.state_dict() for name, network in copies.items()}, used


def _trainable(networks: Mapping[str, Any]) -> dict[str, Any]:
    """Copies in float32, through which gradients flow."""
    return {name: copy.deepcopy(network).float().requires_grad_(True) for name, network in networks.items()}


def _prune(networks: dict[str, Any], loss: Loss, ratio: float, importance: Any) -> None:
    """Prune networks in place, traced as one through their common loss."""
    import torch_pruning

    whole = nn.ModuleDict(networks)
    # The outputs' channels are given; attention keeps its heads and their width, which fast kernels want.
    ignored = [network.conv_out for network in networks.values() if hasattr(network, "conv_out")]
    for module in whole.modules():
        if isinstance(module, Attention):
            ignored += [module.to_q, module.to_k, module.to_v]
    gated = [layer.net[2] for layer in whole.modules() if isinstance(layer, FeedForward)]
    ignored += [layer.net[0].proj for layer in whole.modules() if isinstance(layer, FeedForward)]
    with torch.enable_grad(), contextlib.redirect_stdout(io.StringIO()):
        pruner = torch_pruning.pruner.BasePruner(
            whole,
            example_inputs=torch.zeros(()),
            forward_fn=lambda model, _: loss(dict(model.items()), 0),
            importance=importance,
            pruning_ratio=ratio,
            ignored_layers=ignored,
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        )
        pruner.step()
        # The two halves of a gated layer's outputs are multiplied with one another, which torch-pruning ranks apart:
        # taken from behind, through the inputs of the layer that reads the product, they are one group.
        for behind in gated:
            narrow = torch_pruning.prune_linear_in_channels
            channels = behind.in_features
            scores = importance(pruner.DG.get_pruning_group(behind, narrow, idxs=list(range(channels))))
            least = scores.argsort()[: channels - int(channels * (1 - ratio))].tolist()
            pruner.DG.get_pruning_group(behind, narrow, idxs=least).prune()
