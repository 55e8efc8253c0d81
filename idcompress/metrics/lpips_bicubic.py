"""LPIPS of the enlarged input against the true result: what super-resolution has to beat."""

from __future__ import annotations

from . import target_lpips_of_input
from ._metric import AGAINST


class Metric(target_lpips_of_input.Metric):
    """Target LPIPS of the bicubically enlarged input; no model changes it."""

    subject = "bicubically enlarged input"
    compares = f"{subject} with {AGAINST['target']}"
