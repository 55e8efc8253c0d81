"""Diff-Pruning: narrower layers, by first-order importance over the timesteps whose loss is informative"""

from typing import Any

from ..adapters.diff_pruning import check_package, denoising_networks, group_widths, prune_by_taylor
from ..adapters.widths import with_widths
from ..core.cut import Cut
from ..errors import IdcError
from ..types import CutRequest

SOURCE = "Fang et al., Structural Pruning for Diffusion Models (Diff-Pruning), arXiv 2305.10924"
SEARCHES = False


def needs(*, ratio: float = 0.1, threshold: float = 0.05, timestep_stride: int = 1) -> tuple[str, ...]:
    """Its importance is that for the task's own loss.

    Raises:
        IdcError: a parameter out of range, or torch-pruning is not installed.
    """
    for name, value, low, high in (("ratio", ratio, 0, 1), ("threshold", threshold, 0, 1)):
        if not low < value < high:
            raise IdcError(f"prune.{name} must lie between {low} and {high}, got {value}")
    if timestep_stride < 1:
        raise IdcError(f"prune.timestep_stride must be at least 1, got {timestep_stride}")
    check_package()
    return ("batches", "loss")


def candidates(
    components: dict[str, Any],
    request: CutRequest,
    *,
    ratio: float = 0.1,
    threshold: float = 0.05,
    timestep_stride: int = 1,
) -> list[Cut]:
    """The whole model, and the widths that the ratio leaves: the published method searches nothing.

    Args:
        ratio: share of the channels that every group of layers loses.
        threshold: timesteps are looked at from 0 up to the first whose loss falls to this share of the largest so far.
        timestep_stride: look at every so many-th timestep; 1 as published.

    Raises:
        IdcError: the model is not loaded in float32, in which gradients are summed.
    """
    networks = denoising_networks(components)
    if any(str(network.dtype) != "torch.float32" for network in networks.values()):
        raise IdcError("prune=diff_pruning sums small gradients; use dtype=float32")
    widths = group_widths(networks, _loss(components, request), ratio)
    choice = {"ratio": ratio, "threshold": threshold, "timestep_stride": timestep_stride, "widths": widths}
    return [Cut("diff_pruning"), Cut("diff_pruning", choice)]


def apply(components: dict[str, Any], cut: Cut) -> dict[str, Any]:
    """Networks of the cut's widths; which channels they keep, calibration or a recipe's weights say.

    Args:
        components: a whole pipeline's, by name; they are not changed.

    Returns:
        The components to replace; none for a cut without widths, which is the whole model.

    Raises:
        IdcError: the widths do not fit the model.
    """
    if not cut.choice:
        return {}
    widths = cut.choice.get("widths")
    if not isinstance(widths, dict) or not widths.keys() <= denoising_networks(components).keys():
        raise IdcError("a cut by diff_pruning must have the widths of networks that this model has")
    try:
        return {name: with_widths(components[name], own) for name, own in widths.items()}
    except (ValueError, TypeError) as error:
        raise IdcError(f"the widths of a cut by diff_pruning do not fit this model: {error}") from None


def is_calibrated(cut: Cut) -> bool:
    """Whether `calibrate` has anything to do for a cut."""
    return bool(cut.choice)


def calibrate(components: dict[str, Any], replaced: dict[str, Any], cut: Cut, request: CutRequest) -> list[str]:
    """Give the narrower networks the channels that matter most for the task's loss, in place.

    Args:
        components: the whole pipeline's.
        replaced: what `apply` made of them.

    Returns:
        Names of the networks: their weights are the calibration's own.
    """
    steps = range(0, int(components["scheduler"].config.num_train_timesteps), cut.choice["timestep_stride"])
    states, _ = prune_by_taylor(
        denoising_networks(components),
        _loss(components, request),
        steps,
        ratio=cut.choice["ratio"],
        threshold=cut.choice["threshold"],
    )
    for name, state in states.items():
        replaced[name].load_state_dict(state)
    return list(states)


def matched_features(components: dict[str, Any], cut: Cut) -> dict[str, str]:
    """None: every hidden state is narrower than the whole model's, so that distillation compares outputs alone."""
    return {}


def words(components: dict[str, Any], cut: Cut | None) -> str:
    """ "Diff-Pruning at ratio 0.1"."""
    return "the whole model" if cut is None or not cut.choice else f"Diff-Pruning at ratio {cut.choice['ratio']:g}"


def _loss(components: dict[str, Any], request: CutRequest) -> Any:
    """The task's loss of networks that stand for the model's own, on one fixed batch at a timestep."""
    assert request.batches is not None and request.loss is not None
    batch, loss = next(iter(request.batches())), request.loss
    return lambda networks, timestep: loss({**components, **networks}, batch, timestep)
