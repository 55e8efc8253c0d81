"""The paper's depth-skip pruning: drop the deep end of the U-Net, and what its side networks compute for it alone."""

from functools import partial
from typing import Any, Literal

from ..adapters.side_networks import cut_networks, stored_levels
from ..adapters.stub import fit_stub
from ..adapters.unet import cut_ends
from ..core.cut import Cut
from ..core.skip_plan import check_depth
from ..errors import IdcError
from ..types import CutRequest

SOURCE = "Kim et al., Diffusion Model Compression for Image-to-Image Translation, ACCV 2024, Sec. 3.2"

STUB_TIMESTEPS = 10  # evenly spaced, that a stub is fitted at


def candidates(
    components: dict[str, Any],
    request: CutRequest,
    *,
    fill: Literal["zeros", "stub"] = "zeros",
    stub_kernel: Literal[1, 3] = 1,
) -> list[Cut]:
    """Every depth, from all levels that are there down to one."""
    full = levels(components)
    return [chosen(full), *(chosen(depth, fill=fill, stub_kernel=stub_kernel) for depth in range(full - 1, 0, -1))]


def chosen(depth: int, *, fill: str = "zeros", stub_kernel: int = 1) -> Cut:
    """The cut that keeps so many levels.

    Args:
        fill: what stands for the hidden state at the cut: the paper's zeros, or a stub, a convolution of the last kept
            skip.
        stub_kernel: side of the stub.
    """
    stub = {"fill": "stub", "stub_kernel": stub_kernel} if fill == "stub" else {}
    return Cut("depth_skip", {"depth": depth, **stub})


def needs(*, fill: str = "zeros", stub_kernel: int = 1) -> tuple[str, ...]:
    """A stub is fitted to the whole model's hidden states on training batches."""
    return ("batches", "loss") if fill == "stub" else ()


def apply(components: dict[str, Any], cut: Cut) -> dict[str, Any]:
    """Cut the U-Net, and with it the parts of its side networks that it no longer reads.

    A stub gives zeros until it is calibrated, or a recipe's weights are loaded.

    Args:
        components: a pipeline's, by name, which may have been cut before; they are not changed.

    Returns:
        The components to replace; none if the U-Net already has this depth.

    Raises:
        IdcError: the cut names no depth, or one that this U-Net does not have.
    """
    depth, kernel = cut.choice.get("depth"), cut.choice.get("stub_kernel")
    if type(depth) is not int or cut != chosen(depth, fill=cut.choice.get("fill", "zeros"), stub_kernel=kernel or 1):
        raise IdcError(f"a cut by depth_skip must name a depth and at most a stub, got {dict(cut.choice)}")
    if kernel not in (None, 1, 3):
        raise IdcError(f"a stub's stub_kernel must be 1 or 3, got {kernel!r}")
    present = levels(components)
    try:
        check_depth(depth, present)
    except ValueError as error:
        raise IdcError(f"{error}; change depth=") from None
    if depth == present:
        return {}
    return cut_networks(components, depth, stub_kernel=kernel)


def is_calibrated(cut: Cut) -> bool:
    """Whether `calibrate` has anything to do for a cut."""
    return "stub_kernel" in cut.choice


def calibrate(components: dict[str, Any], replaced: dict[str, Any], cut: Cut, request: CutRequest) -> list[str]:
    """Fit the stub of a cut U-Net, in place, to what the whole one has at the cut.

    Args:
        components: the whole pipeline's.
        replaced: what `apply` made of them.

    Returns:
        Names of the components whose weights are the calibration's own.
    """
    assert request.batches is not None and request.loss is not None
    train = int(components["scheduler"].config.num_train_timesteps)
    timesteps = [round((place + 0.5) * train / STUB_TIMESTEPS) for place in range(STUB_TIMESTEPS)]

    def run(unet: Any, batch: Any, timestep: int) -> None:
        own = components if unet is components["unet"] else {**components, **replaced}
        request.loss(own, batch, timestep)  # type: ignore[misc]

    runs = (partial(run, batch=batch, timestep=t) for batch in request.batches() for t in timesteps)
    fit_stub(components["unet"], replaced["unet"], runs)
    return ["unet"]


def ends(components: dict[str, Any]) -> list[str]:
    """What of a cut pipeline the cut gave other inputs, as names "component.module"."""
    return [f"unet.{name}" for name in cut_ends(components["unet"])]


def words(components: dict[str, Any], cut: Cut | None) -> str:
    """ "depth 9 of 13"."""
    full = levels(components)
    stub = "" if cut is None or not is_calibrated(cut) else f" with a stub of {cut.choice['stub_kernel']} px"
    return f"depth {full if cut is None else cut.choice['depth']} of {full}{stub}"


def levels(components: dict[str, Any]) -> int:
    """Levels that a pipeline's U-Net has: 13 for Stable Diffusion, those it kept if it was cut or exported."""
    return stored_levels(components["unet"])
