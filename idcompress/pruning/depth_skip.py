"""The paper's depth-skip pruning: drop the deep end of the U-Net, and what its side networks compute for it alone."""

from typing import Any

from ..adapters.side_networks import follow_cut
from ..adapters.unet import depth as depth_of
from ..adapters.unet import depth_skip, unet_shape
from ..core.cut import Cut
from ..core.skip_plan import check_depth, skip_plan
from ..errors import IdcError
from ..types import CutRequest

SOURCE = "Kim et al., Diffusion Model Compression for Image-to-Image Translation, ACCV 2024, Sec. 3.2"


def candidates(components: dict[str, Any], request: CutRequest) -> list[Cut]:
    """Every depth, from all levels that are there down to one."""
    return [chosen(depth) for depth in range(levels(components), 0, -1)]


def chosen(depth: int) -> Cut:
    """The cut that keeps so many levels."""
    return Cut("depth_skip", {"depth": depth})


def apply(components: dict[str, Any], cut: Cut) -> dict[str, Any]:
    """Cut the U-Net, and with it the parts of its side networks that it no longer reads.

    Args:
        components: a pipeline's, by name, which may have been cut before; they are not changed.

    Returns:
        The components to replace; none if the U-Net already has this depth.

    Raises:
        IdcError: the cut names no depth, or one that this U-Net does not have.
    """
    depth, unet = cut.choice.get("depth"), components["unet"]
    if type(depth) is not int or set(cut.choice) != {"depth"}:
        raise IdcError(f"a cut by depth_skip must name a depth and nothing else, got {dict(cut.choice)}")
    present = levels(components)
    try:
        check_depth(depth, present)
    except ValueError as error:
        raise IdcError(f"{error}; change depth=") from None
    if depth == present:
        return {}
    replaced = {"unet": depth_skip(unet, depth)}
    plan = skip_plan(unet_shape(unet), depth)
    for name, component in components.items():
        followed = follow_cut(component, replaced["unet"], plan)
        if followed is not None:
            replaced[name] = followed
    return replaced


def words(components: dict[str, Any], cut: Cut | None) -> str:
    """ "depth 9 of 13"."""
    full = levels(components)
    return f"depth {full if cut is None else cut.choice['depth']} of {full}"


def levels(components: dict[str, Any]) -> int:
    """Levels that a pipeline's U-Net has: 13 for Stable Diffusion, those it kept if it was cut or exported."""
    unet = components["unet"]
    return depth_of(unet) - (unet.mid_block is None)
