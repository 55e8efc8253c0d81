"""PSNR of the enlarged input against the true result, in dB: what super-resolution must not fall far below."""

from __future__ import annotations

from . import target_psnr_of_input
from ._metric import AGAINST


class Metric(target_psnr_of_input.Metric):
    """Target PSNR of the bicubically enlarged input; no model changes it."""

    subject = "bicubically enlarged input"
    compares = f"{subject} with {AGAINST['target']}"
