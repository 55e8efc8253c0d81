"""BK-SDM's smaller U-Nets: residual layers and attentions that were chosen by hand go, the rest keeps its weights.

Of two residual layers in each down block the first stays, of three in each up block the first and the last: the first
meets the width that comes from below, the last takes the skip of the stage before. The result is a network of the
stock class in a stock configuration.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel

from .unet import shorten_levels

SIZES = ("base", "small", "tiny")


def bk_config(config: Any, size: str) -> dict[str, Any]:
    """The configuration of a U-Net's smaller form.

    Args:
        config: the U-Net's own.
        size: base drops a layer of every stage, small the middle block as well, tiny the deepest stage, too.

    Raises:
        ValueError: the rule does not fit this U-Net.

    Source: Kim et al., BK-SDM, arXiv 2305.15798, Sec. 3.1; the released configurations bk_base, bk_small and bk_tiny.
    """
    if size not in SIZES:
        raise ValueError(f"the sizes are {', '.join(SIZES)}, got {size!r}")
    if config.get("depth") is not None:
        raise ValueError(f"it takes a whole U-Net, and this one is cut to depth {config['depth']}")
    if config["layers_per_block"] != 2:
        layers = config["layers_per_block"]
        raise ValueError(f"it drops one of two layers per stage, and this U-Net has layers_per_block={layers}")
    small = {name: value for name, value in config.items() if not name.startswith("_")}
    small["layers_per_block"] = 1
    if size == "base":
        return small
    small["mid_block_type"] = None
    if size == "small":
        return small
    widths = config["block_out_channels"]
    if len(widths) < 2 or widths[-1] != widths[-2]:
        raise ValueError(
            "tiny drops the deepest stage, which must be as wide as the one above it, and this U-Net has "
            f"block_out_channels={list(widths)}; base and small fit"
        )
    small = shorten_levels(small, len(widths) - 1)
    small["up_block_types"] = config["up_block_types"][1:]
    reverse = config.get("reverse_transformer_layers_per_block")
    if isinstance(reverse, (list, tuple)):
        small["reverse_transformer_layers_per_block"] = reverse[1:]
    return small


def teacher_name(name: str, size: str) -> str:
    """The whole U-Net's name of a parameter or module of the smaller one."""
    parts = name.split(".")
    if parts[0] == "up_blocks":
        if size == "tiny":
            parts[1] = str(int(parts[1]) + 1)
        if parts[2:4] in (["resnets", "1"], ["attentions", "1"]):
            parts[3] = "2"
    return ".".join(parts)


def bk_unet(unet: UNet2DConditionModel, size: str) -> Any:
    """A U-Net's smaller form over the weights that stay, which are shared, not copied; the argument stays as it is.

    Args:
        unet: of any class that its configuration builds, in any dtype, also on the meta device.

    Raises:
        ValueError: the rule does not fit this U-Net.

    Source: as `bk_config`; the copying of the released trainer.
    """
    config = bk_config(unet.config, size)
    with torch.device("meta"):
        small = type(unet).from_config(config)
    weights = unet.state_dict()
    own = {name: weights[teacher_name(name, size)] for name in small.state_dict()}
    small.load_state_dict(own, strict=True, assign=True)
    return small.train(unet.training).requires_grad_(next(unet.parameters()).requires_grad)


def matched_features(unet: UNet2DConditionModel, size: str) -> dict[str, str]:
    """Modules whose outputs distillation compares: name in the smaller U-Net -> name in the whole one.

    Args:
        unet: the smaller one.

    Source: the released trainer: the outputs of all down and up blocks; for tiny, in place of the deepest down block,
        what its attention adds.
    """
    down, up = (len(blocks) for blocks in (unet.down_blocks, unet.up_blocks))
    pairs = {f"down_blocks.{block}": f"down_blocks.{block}" for block in range(down)}
    if size == "tiny":
        deepest = pairs.popitem()[0]
        if getattr(unet.get_submodule(deepest), "attentions", None):
            pairs[f"{deepest}.attentions.0.proj_out"] = f"{deepest}.attentions.1.proj_out"
    return pairs | {f"up_blocks.{block}": teacher_name(f"up_blocks.{block}.", size)[:-1] for block in range(up)}
