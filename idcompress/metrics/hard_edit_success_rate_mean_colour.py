"""What `hard_edit_success_rate` gives for no edit at all: the input photograph's mean colour, painted everywhere."""

from __future__ import annotations

from . import edit_success_rate_mean_colour


class Metric(edit_success_rate_mean_colour.Metric):
    """1 or 0 per example tagged "hard", the same for every model; the lower, the more the rate means."""

    compares = "the input photograph's mean colour and the input photograph, each with the true edit; hard edits"
    judges_hard = True
