"""The control branch of a pruned U-Net: drop what only residuals depend on that the U-Net never reads."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from ..core.skip_plan import SkipPlan, UNetShape, skip_plan
from .unet import drop_encoder, sharing


def prune_controlnet(controlnet: ControlNetModel, plan: SkipPlan) -> ControlNetModel:
    """Cut a control branch to the residuals that the U-Net reads at a plan's depth.

    The result returns the first `plan.depth` residuals, equal to the full branch's, and a zero of shape (B, 1, 1, 1)
    for the middle one. Half of SD 1.5's branch goes at depth 9. In guess mode the residuals keep the full branch's
    scales: diffusers alone would spread its log scale over however many residuals there are.

    Args:
        controlnet: the branch of the same U-Net family, also one that was cut before; it stays as it was, and the
            result shares its parameters.
        plan: of the U-Net; at full depth the result is complete.
    """
    if plan.depth == plan.full_depth:
        return sharing(controlnet)
    blocks = controlnet.controlnet_down_blocks
    dropped = [controlnet.mid_block, controlnet.controlnet_mid_block, *list(blocks)[plan.depth :]]
    dropped += drop_encoder(controlnet.down_blocks, plan)
    pruned = sharing(controlnet, without=dropped)
    pruned.controlnet_mid_block = _Zero()
    pruned.register_to_config(depth=plan.depth)
    if controlnet.config.get("depth") is None:
        pruned.full_residuals = len(blocks) + 1
        pruned.register_forward_hook(_full_guess_scales, with_kwargs=True)
    return pruned


def branch_plan(branch: ControlNetModel, depth: int) -> SkipPlan:
    """What a depth keeps of an uncut branch, which alone does not know its U-Net's decoder.

    The mirrored decoder has as many layers, and widths play no part.
    """
    layers = tuple(len(block.resnets) for block in branch.down_blocks)
    samplers = tuple(bool(block.downsamplers) for block in branch.down_blocks)
    widths = (0,) * (1 + sum(layers) + sum(samplers))
    return skip_plan(UNetShape(layers, samplers, tuple(n + 1 for n in reversed(layers)), widths, widths), depth)


def keep_residuals(branch: ControlNetModel, kept: Sequence[int]) -> ControlNetModel:
    """An uncut control branch that gives some of its residuals, equal to the whole branch's, guess mode included.

    Layers between them stay, because those behind read them; what lies behind the last one goes.

    Args:
        branch: stays as it was.
        kept: numbers of the residuals, rising; the middle one's comes after the last of the down blocks. A zero stands
            for the middle one where it is not kept.
    """
    units = len(branch.controlnet_down_blocks)
    has_middle = kept[-1] == units
    down = list(kept[:-1] if has_middle else kept)
    pruned = prune_controlnet(branch, branch_plan(branch, units + 1 if has_middle else down[-1] + 1))
    for number in range(len(pruned.controlnet_down_blocks)):
        if number not in down:
            pruned.controlnet_down_blocks[number] = _Zero()
    pruned.register_to_config(residuals=list(kept))
    pruned.register_forward_hook(_only_kept)
    return pruned


def keep_first_layers(branch: ControlNetModel, stages: int, *, has_middle: bool) -> ControlNetModel:
    """The branch of a U-Net that kept one residual layer of each of its first so many stages.

    It gives the whole branch's residuals of the layers that stayed, of the downsamplers between them, and, where the
    U-Net has a middle block, of that.
    """
    kept, unit = [0], 1
    for stage, block in enumerate(branch.down_blocks):
        layers = len(block.resnets)
        if stage < stages:
            kept.append(unit)
            if block.downsamplers and stage < stages - 1:
                kept.append(unit + layers)
        unit += layers + bool(block.downsamplers)
    return keep_residuals(branch, [*kept, unit] if has_middle else kept)


def _only_kept(branch: ControlNetModel, args: tuple[Any, ...], output: Any) -> Any:
    kept = [output[0][number] for number in branch.config.residuals if number < len(output[0])]
    if isinstance(output, tuple):
        return (kept, *output[1:])
    output.down_block_res_samples = kept
    return output


class _Zero(nn.Module):
    """A residual that nobody reads: a zero that broadcasts, 4-D because guess mode concatenates it."""

    def forward(self, sample: Tensor) -> Tensor:
        return sample.new_zeros(sample.shape[0], 1, 1, 1)


def _full_guess_scales(branch: ControlNetModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    bound = inspect.signature(type(branch).forward).bind(branch, *args, **kwargs).arguments
    if not bound.get("guess_mode") or branch.config.global_pool_conditions:
        return None
    down = output[0]
    full, short = (torch.logspace(-1, 0, n).tolist() for n in (branch.full_residuals, len(down) + 1))
    corrected = [residual * (f / s) for residual, f, s in zip(down, full, short, strict=False)]
    if isinstance(output, tuple):
        return (corrected, *output[1:])
    output.down_block_res_samples = corrected
    return output
