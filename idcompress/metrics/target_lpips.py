"""LPIPS of the output against the true result; 0 for identical images."""

from __future__ import annotations

from . import lpips
from ._metric import AGAINST


class Metric(lpips.Metric):
    """LPIPS against the example's target."""

    needs = ("target",)
    compares = f"output with {AGAINST['target']}"

    def __init__(self, *, net: str = "alex", weights: str = "", device: str = "cpu") -> None:
        """Args: as of `lpips`."""
        super().__init__(against="target", net=net, weights=weights, device=device)
