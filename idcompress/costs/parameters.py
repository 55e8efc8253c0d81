"""Number of parameters, by the files' count and by the paper's, which leaves the U-Net's time embedding out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .cost import Cost

if TYPE_CHECKING:
    from torch import nn


def count_parameters(network: nn.Module) -> tuple[int, int]:
    """Parameters of a network: all of them, and without its `time_embedding`. Buffers are not counted."""
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    embedding = sum(size for name, size in sizes.items() if name.startswith("time_embedding."))
    return sum(sizes.values()), sum(sizes.values()) - embedding


class Parameters(Cost):
    """Parameters of all networks together: `params`, `params_paper`."""

    unit = ""

    def measure(
        self, modules: Sequence[nn.Module], inputs: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, float]:
        """Args: modules: the U-Net first; side networks count whole in both, as in the paper's totals."""
        counts = [count_parameters(module) for module in modules]
        total = sum(all_ for all_, _ in counts)
        return {"params": total, "params_paper": total - sum(all_ - paper for all_, paper in counts[:1])}
