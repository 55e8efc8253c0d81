"""PSNR of the output against the input photograph, in dB: how much of it an edit keeps."""

from __future__ import annotations

from . import psnr
from ._metric import AGAINST


class Metric(psnr.Metric):
    """PSNR against the example's image."""

    needs = ("image",)
    compares = f"output with {AGAINST['image']}"

    def __init__(self) -> None:
        super().__init__(against="image")
