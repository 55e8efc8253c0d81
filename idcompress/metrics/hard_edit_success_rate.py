"""Share of hard edits (content moves) whose output is nearer to the true edit than the input photograph is."""

from __future__ import annotations

from . import edit_success_rate


class Metric(edit_success_rate.Metric):
    """1 or 0 per example tagged "hard"; its mean is the rate."""

    compares = "output and input photograph, each with the true edit; hard edits"
    judges_hard = True
