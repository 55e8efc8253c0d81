"""SSIM of the output against the true result, in [-1, 1]."""

from __future__ import annotations

from . import ssim
from ._metric import AGAINST


class Metric(ssim.Metric):
    """SSIM against the example's target."""

    needs = ("target",)
    compares = f"output with {AGAINST['target']}"

    def __init__(self) -> None:
        super().__init__(against="target")
