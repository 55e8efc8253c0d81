"""Networks beside the U-Net, whose outputs it reads level by level. A cut drops what the cut U-Net no longer reads."""

from typing import Any

from diffusers import ControlNetModel

from ..core.skip_plan import SkipPlan
from .controlnet import keep_first_layers, prune_controlnet


def follow_cut(component: Any, cut_unet: Any, plan: SkipPlan) -> Any:
    """A side network without what only the dropped levels of its U-Net read; None for any other component.

    A network of ours cuts itself, by its method `follow_cut(cut_unet)`.

    Args:
        component: of a pipeline; it stays as it is.
        cut_unet: the U-Net after the cut.
        plan: of the cut.
    """
    if isinstance(component, ControlNetModel):
        return prune_controlnet(component, plan)
    follow = getattr(component, "follow_cut", None)
    return None if follow is None else follow(cut_unet)


def follow_first_layers(component: Any, cut_unet: Any) -> Any:
    """The same for a U-Net that kept one residual layer of each stage of its encoder, and maybe fewer stages."""
    if isinstance(component, ControlNetModel):
        return keep_first_layers(component, len(cut_unet.down_blocks), has_middle=cut_unet.mid_block is not None)
    follow = getattr(component, "follow_cut", None)
    return None if follow is None else follow(cut_unet)
