"""BK-SDM's block pruning: a layer of every stage goes, then the middle block, then the deepest stage"""

from typing import Any, Literal

from ..adapters.bk_sdm import SIZES, bk_config, bk_unet
from ..adapters.bk_sdm import matched_features as matched
from ..adapters.side_networks import follow_first_layers
from ..core.cut import Cut
from ..errors import IdcError
from ..types import CutRequest

SOURCE = "Kim et al., BK-SDM, arXiv 2305.15798, Sec. 3.1"
SEARCHES = False


def candidates(
    components: dict[str, Any], request: CutRequest, *, size: Literal["base", "small", "tiny"] = "base"
) -> list[Cut]:
    """The whole model, and the size that was chosen: the published method searches nothing."""
    return [Cut("bk_sdm"), given(size=size)]


def given(*, size: str = "base") -> Cut:
    """The cut that the parameters name."""
    return Cut("bk_sdm", {"size": size})


def apply(components: dict[str, Any], cut: Cut) -> dict[str, Any]:
    """The smaller U-Net, and its side networks without what it no longer reads.

    Args:
        components: a whole pipeline's, by name; they are not changed.

    Returns:
        The components to replace; none for a cut without a size, which is the whole model.

    Raises:
        IdcError: the cut names no size, or the rule does not fit this U-Net.
    """
    if not cut.choice:
        return {}
    size = _check(components, cut)
    replaced = {"unet": bk_unet(components["unet"], size)}
    for name, component in components.items():
        followed = follow_first_layers(component, replaced["unet"])
        if followed is not None:
            replaced[name] = followed
    return replaced


def words(components: dict[str, Any], cut: Cut | None) -> str:
    """ "BK-SDM base"."""
    return "the whole model" if cut is None or not cut.choice else f"BK-SDM {cut.choice['size']}"


def matched_features(components: dict[str, Any], cut: Cut) -> dict[str, str]:
    """What distillation compares, see `adapters.bk_sdm.matched_features`.

    Args:
        components: after the cut.
    """
    return matched(components["unet"], cut.choice["size"])


def _check(components: dict[str, Any], cut: Cut) -> str:
    size = cut.choice.get("size")
    if size not in SIZES or set(cut.choice) != {"size"}:
        raise IdcError(
            f"a cut by bk_sdm must name a size ({', '.join(SIZES)}) and nothing else, got {dict(cut.choice)}"
        )
    try:
        bk_config(components["unet"].config, size)
    except ValueError as error:
        raise IdcError(f"prune=bk_sdm does not fit this model: {error}") from None
    return str(size)
