"""PSNR of the output against the true result, in dB."""

from __future__ import annotations

from . import psnr
from ._metric import AGAINST


class Metric(psnr.Metric):
    """PSNR against the example's target."""

    needs = ("target",)
    compares = f"output with {AGAINST['target']}"

    def __init__(self) -> None:
        super().__init__(against="target")
