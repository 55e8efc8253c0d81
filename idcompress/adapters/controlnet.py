"""The control branch at a depth: drop the blocks whose residuals a depth-skipped U-Net never reads."""

import inspect
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from ..core.skip_plan import SkipPlan
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
    pruned.controlnet_mid_block = _ZeroMiddle()
    pruned.register_to_config(depth=plan.depth)
    if controlnet.config.get("depth") is None:
        pruned.full_residuals = len(blocks) + 1
        pruned.register_forward_hook(_full_guess_scales, with_kwargs=True)
    return pruned


class _ZeroMiddle(nn.Module):
    """The middle residual of a pruned branch: a zero that broadcasts, 4-D because guess mode concatenates it."""

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
