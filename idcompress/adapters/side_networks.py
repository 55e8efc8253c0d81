"""Networks beside the U-Net, whose outputs it reads level by level. A cut drops what the cut U-Net no longer reads."""

from typing import Any

from diffusers import ControlNetModel

from ..core.skip_plan import SkipPlan, skip_plan
from .controlnet import keep_first_layers, prune_controlnet
from .unet import depth, depth_skip, unet_shape


def stored_levels(unet: Any) -> int:
    """Levels that a U-Net has: 13 for Stable Diffusion, those it kept if it was cut or is a cut's stock form."""
    return depth(unet) - (unet.mid_block is None)


def cut_networks(components: dict[str, Any], depth: int, *, stub_kernel: int | None = None) -> dict[str, Any]:
    """The U-Net cut by depth-skip, and its side networks without what only the dropped levels read, by name.

    Args:
        components: a pipeline's, by name, "unet" among them; they stay as they are.
        depth, stub_kernel: see `depth_skip`.
    """
    unet = components["unet"]
    replaced = {"unet": depth_skip(unet, depth, stub_kernel=stub_kernel)}
    plan = skip_plan(unet_shape(unet), depth)
    for name, component in components.items():
        followed = follow_cut(component, replaced["unet"], plan)
        if followed is not None:
            replaced[name] = followed
    return replaced


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
