"""The hidden states of a U-Net where its cuts are: given out by one call, and taken in by a later one at less depth.

They are values that a call returns and another takes. A module keeps none, so that runs and threads do not mix.
"""

import threading
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..core.skip_plan import skip_plan
from .unet import changed, depth, unet_shape

_CALL = threading.local()


def giving(unet: Any, depths: Iterable[int]) -> Any:
    """A U-Net over the same parameters whose calls by `call_unet` give hidden states out.

    Args:
        unet: full, or cut by depth-skip.
        depths: where; those that the U-Net does not go beyond are left out.
    """
    wanted = tuple(sorted({one for one in depths if one < depth(unet)}))
    if not wanted:
        return unet
    return changed(unet, ("giving", *wanted), partial(_let_give, depths=wanted))


def _let_give(unet: Any, depths: Iterable[int]) -> None:
    shape, layers = unet_shape(unet), [layer for block in unet.up_blocks for layer in block.resnets]
    for one in depths:
        note = partial(_note, one, skip_plan(shape, one).hidden_channels)
        layers[-one].register_forward_pre_hook(note)


def call_unet(unet: Any, *args: Any, deep_features: Tensor | None = None, **kwargs: Any) -> tuple[Any, dict[int, Any]]:
    """One call of a U-Net.

    Args:
        args, kwargs: of its forward.
        deep_features: (B, C, h, w), the hidden state at the cut in place of its zeros; for a cut U-Net.

    Returns:
        what it returns, and by depth the hidden states (B, C, h, w) that entered the decoder, if it is one of `giving`.
    """
    given = {} if deep_features is None else {"deep_features": deep_features}
    outer, found = getattr(_CALL, "found", None), dict[int, Any]()
    _CALL.found = found
    try:
        return unet(*args, **given, **kwargs), found
    finally:
        _CALL.found = outer


def _note(depth: int, channels: int, _: nn.Module, args: tuple[Any, ...]) -> None:
    """A decoder layer's input is the hidden state and, behind it, a skip."""
    found = getattr(_CALL, "found", None)
    if found is not None:
        found[depth] = args[0][:, :channels].clone()
