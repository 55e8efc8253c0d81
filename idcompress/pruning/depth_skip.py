"""The paper's depth-skip pruning: drop the deep end of the U-Net, and of its side networks what nobody reads then."""

from typing import Any

from ..adapters.controlnet import prune_controlnet
from ..adapters.unet import depth_skip, full_depth, unet_shape
from ..core.skip_plan import check_depth, skip_plan
from ..errors import IdcError

SOURCE = "Kim et al., Diffusion Model Compression for Image-to-Image Translation, ACCV 2024, Sec. 3.2"


def levels(components: dict[str, Any]) -> int:
    """The full depth of a pipeline's U-Net, 13 for Stable Diffusion."""
    return full_depth(components["unet"])


def apply(components: dict[str, Any], depth: int) -> dict[str, Any]:
    """Cut the U-Net, and with it the blocks of the control branch that it no longer reads.

    Args:
        components: a pipeline's, by name; they stay as they are.

    Returns:
        The components to replace.

    Raises:
        IdcError: the depth is out of range for this U-Net.
    """
    unet = components["unet"]
    shape = unet_shape(unet)
    try:
        check_depth(depth, shape.full_depth)
    except ValueError as error:
        raise IdcError(f"{error}; change depth=") from None
    if depth == shape.full_depth:
        return {}
    replaced = {"unet": depth_skip(unet, depth)}
    if components.get("controlnet") is not None:
        replaced["controlnet"] = prune_controlnet(components["controlnet"], skip_plan(shape, depth))
    if components.get("structure_encoder") is not None:
        from ..models.stablesr import num_structure_levels, prune_structure_encoder

        read = num_structure_levels(replaced["unet"])
        replaced["structure_encoder"] = prune_structure_encoder(components["structure_encoder"], read)
    return replaced
