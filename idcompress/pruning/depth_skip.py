"""The paper's depth-skip pruning: drop the deep end of the U-Net, and of its side networks what nobody reads then."""

from typing import Any

from ..adapters.controlnet import prune_controlnet
from ..adapters.unet import depth as depth_of
from ..adapters.unet import depth_skip, unet_shape
from ..core.skip_plan import check_depth, skip_plan
from ..errors import IdcError

SOURCE = "Kim et al., Diffusion Model Compression for Image-to-Image Translation, ACCV 2024, Sec. 3.2"


def levels(components: dict[str, Any]) -> int:
    """Levels that a pipeline's U-Net has: 13 for Stable Diffusion, those it kept if it was cut or exported."""
    unet = components["unet"]
    return depth_of(unet) - (unet.mid_block is None)


def apply(components: dict[str, Any], depth: int) -> dict[str, Any]:
    """Cut the U-Net, and with it the blocks of the control branch that it no longer reads.

    Args:
        components: a pipeline's, by name, also of one that was cut before; they stay as they are.

    Returns:
        The components to replace.

    Raises:
        IdcError: the depth is out of range for this U-Net.
    """
    unet, present = components["unet"], levels(components)
    try:
        check_depth(depth, present)
    except ValueError as error:
        raise IdcError(f"{error}; change depth=") from None
    if depth == present:
        return {}
    replaced = {"unet": depth_skip(unet, depth)}
    if components.get("controlnet") is not None:
        plan = skip_plan(unet_shape(unet), depth)
        replaced["controlnet"] = prune_controlnet(components["controlnet"], plan)
    if components.get("structure_encoder") is not None:
        from ..models.stablesr import num_structure_levels, prune_structure_encoder

        read = num_structure_levels(replaced["unet"])
        replaced["structure_encoder"] = prune_structure_encoder(components["structure_encoder"], read)
    return replaced
