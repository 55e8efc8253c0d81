"""Compressed pipelines as folders: stock diffusers classes where a cut has a stock form, our own where it has none.

A stock U-Net without middle block feeds its last encoder output into the decoder, where a cut U-Net has zeros. Where
that output is as wide as the zeros and no group of the first kept GroupNorm mixes it with the skip, two zeroed weights
keep it from having any effect, and the stock model equals the cut one bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor

from ..adapters.cut_models import DepthSkipUNet2DConditionModel, NarrowUNet2DConditionModel
from ..adapters.pipeline import fixed_scheduler, with_components
from ..adapters.unet import depth, shorten_levels, unet_shape
from ..core.plan import Plan
from ..core.skip_plan import SkipPlan, skip_plan
from ..runs import files


def stock_obstacle(unet: UNet2DConditionModel, depth: int) -> str | None:
    """Why stock diffusers cannot express a U-Net's cut exactly; None where it can.

    Args:
        unet: full, or cut to any depth.
        depth: 1 .. full_depth(unet).
    """
    if type(unet) not in (UNet2DConditionModel, DepthSkipUNet2DConditionModel, NarrowUNet2DConditionModel):
        return f"{type(unet).__name__} is no class of diffusers"
    if unet.config.get("widths") is not None:
        return "its layers are narrower than any configuration says"
    if unet.config.get("stub_kernel") is not None:
        return "a convolution stands at the cut"
    shape = unet_shape(unet)
    if depth == shape.full_depth:
        return None
    hidden, skip = skip_plan(shape, depth).hidden_channels, shape.skip_channels[depth - 1]
    if hidden != skip:
        return f"the last encoder output has {skip} channels where the zeros have {hidden}"
    group = (hidden + skip) // int(unet.config.norm_num_groups)
    if hidden % group:
        return f"a normalisation group of {group} channels mixes the {hidden} zeros with the skip"
    return None


def branch_obstacle(pipeline: Any) -> str | None:
    """Why stock diffusers cannot express a pipeline's control branch; None where it can, or where there is none."""
    branch = pipeline.components.get("controlnet")
    if branch is None or branch.config.get("residuals") is None:
        return None
    return "the control branch has layers between the residuals that it gives, which no stock branch can have"


def host_depth(unet: UNet2DConditionModel) -> int | None:
    """The smallest depth with a stock form that a cut U-Net fits into: its own if that has one; None for none.

    The full depth hosts itself alone: a middle block passes its input on, so it cannot yield zeros.
    """
    deeper = [depth(unet), *range(depth(unet) + 1, unet_shape(unet).full_depth)]
    return next((d for d in deeper if stock_obstacle(unet, d) is None), None)


def stock_unet(unet: UNet2DConditionModel, host: int) -> UNet2DConditionModel:
    """A cut U-Net as a stock one, sharing its weights.

    Args:
        unet: cut to some depth (or uncut, then it is returned).
        host: a depth with a stock form, the U-Net's own or larger. What a larger host has beyond the cut is zero, and
            gives exactly the zeros that the first kept decoder layer wants.
    """
    cut_depth, shape = depth(unet), unet_shape(unet)
    if cut_depth == shape.full_depth:
        return unet
    plan = skip_plan(shape, host)
    levels = _levels(plan)
    config = _own_entries(unet.config)
    if host < shape.full_depth:
        config = shorten_levels(config, levels)
        config["layers_per_block"] = [layers or 0 for layers in plan.down_layers[:levels]]
        config["up_block_types"] = config["up_block_types"][-levels:]
        config["mid_block_type"] = None
        reverse = config.get("reverse_transformer_layers_per_block")
        config["reverse_transformer_layers_per_block"] = None if reverse is None else reverse[-levels:]
    first = len(plan.up_layers) - levels
    dropped_layers = shape.up_layers[first] - plan.up_layers[first]

    def full_model_name(name: str) -> str:
        parts = name.split(".")
        if parts[0] == "up_blocks":
            if parts[1] == "0" and parts[2] in ("resnets", "attentions"):
                parts[3] = str(int(parts[3]) + dropped_layers)
            parts[1] = str(int(parts[1]) + first)
        return ".".join(parts)

    with torch.device("meta"):
        stock = UNet2DConditionModel.from_config(config)
    weights = unet.state_dict()
    if host == cut_depth:
        entry, hidden = f"up_blocks.{first}.resnets.{dropped_layers}", plan.hidden_channels
        for name in (f"{entry}.norm1.weight", f"{entry}.conv_shortcut.weight"):
            weights[name] = weights[name].clone()
        weights[f"{entry}.norm1.weight"][:hidden] = 0
        weights[f"{entry}.conv_shortcut.weight"][:, :hidden] = 0
    return _fill(stock, weights, full_model_name)


def stock_controlnet(branch: ControlNetModel, levels: int) -> ControlNetModel:
    """A cut control branch as a stock one of the U-Net's levels, sharing its weights; an uncut one is returned.

    Stock branches have whole levels and a middle block; what is there beyond the cut is zero. Its residuals are zero,
    too, so the stock U-Net, which adds the middle one to a state without effect, takes them unharmed.
    """
    if branch.config.get("depth") is None:
        return branch
    config = shorten_levels(_own_entries(branch.config), levels)
    config["mid_block_type"] = "UNetMidBlock2D"  # the smallest there is
    with torch.device("meta"):
        stock = ControlNetModel.from_config(config)
    return _fill(stock, branch.state_dict(), lambda name: name)


def _levels(plan: SkipPlan) -> int:
    """Levels of the stock model: those with layers, and the one below if the last kept encoder unit leads to it."""
    return max(1, sum(layers is not None for layers in plan.down_layers), 1 + sum(plan.downsamplers))


def _own_entries(config: Any) -> dict[str, Any]:
    """A configuration without our depth and without diffusers' private notes, which would overrule changed entries."""
    return {name: value for name, value in config.items() if name != "depth" and not name.startswith("_")}


def _fill(stock: Any, weights: dict[str, Tensor], full_model_name: Any) -> Any:
    """Load every weight into the model built on the meta device; parameters without one become zero."""
    like = next(iter(weights.values()))
    state = {}
    for name, parameter in stock.state_dict().items():
        weight = weights.pop(full_model_name(name), None)
        state[name] = torch.zeros_like(parameter, dtype=like.dtype, device=like.device) if weight is None else weight
    if weights:
        raise ValueError(f"the stock model has no place for {', '.join(sorted(weights))}")
    stock.load_state_dict(state, strict=True, assign=True)
    return stock.eval().requires_grad_(False)


def stock_scheduler(pipeline: Any, plan: Plan) -> DPMSolverMultistepScheduler:
    """The stock scheduler whose steps over a plan's list are those of DDIM, with the list in its configuration.

    Of order 1, DPM-Solver++ is DDIM, and its stochastic form is DDIM at eta 1, ancestral sampling.

    `set_timesteps(timesteps=...)` of DDIMScheduler does not exist, and an assigned list is stepped through wrongly.
    """
    unfit = ("thresholding", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
    scheduler = DPMSolverMultistepScheduler.from_config(
        _own_entries(pipeline.scheduler.config),
        algorithm_type="sde-dpmsolver++" if plan.sampler == "ancestral" else "dpmsolver++",
        solver_order=1,
        final_sigmas_type="zero",
        **dict.fromkeys(unfit, False),
    )
    scheduler.register_to_config(timesteps=list(plan.timesteps))
    return scheduler


def stock_pipeline(pipeline: Any, plan: Plan | None) -> Any:
    """A cut pipeline with stock networks only, inside the smallest depth that has a stock form.

    Args:
        plan: what its scheduler follows, if there is one: by ancestral sampling, or else by DDIM. No stock scheduler
            knows fitted numbers, or leaves something out of a step: then it is FixedTimestepsScheduler, whose code the
            folder has to bring.

    Raises:
        ValueError: no depth has one.
    """
    host = host_depth(pipeline.unet)
    if host is None:
        raise ValueError(str(stock_obstacle(pipeline.unet, depth(pipeline.unet))))
    replaced: dict[str, Any] = {"unet": stock_unet(pipeline.unet, host)}
    if "controlnet" in pipeline.components:
        levels = len(replaced["unet"].config.block_out_channels)
        replaced["controlnet"] = stock_controlnet(pipeline.controlnet, levels)
    if plan is not None:
        plain = plan.coefficients is None and plan.is_plain
        replaced["scheduler"] = (stock_scheduler if plain else fixed_scheduler)(pipeline, plan.all_whole)
    return with_components(pipeline, replaced)


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """Write a pipeline folder: safetensors and JSON, without the paths that its parts were loaded from."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    forget_paths(folder)


def forget_paths(folder: Path) -> None:
    """Take out of a folder's JSON files where the model was loaded from."""
    for path in folder.rglob("*.json"):
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict) and {"_name_or_path", "name_or_path"} & value.keys():
            files.write_json(path, {k: v for k, v in value.items() if k not in ("_name_or_path", "name_or_path")})
