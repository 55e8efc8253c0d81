"""Share of hard edits (content moves) that can be told from the output among all edits of the photograph."""

from __future__ import annotations

from . import edit_retrieval


class Metric(edit_retrieval.Metric):
    """1 or 0 per example that asks for a hard edit; its mean is the rate."""

    compares = "output with the true results of all edits of its photograph; hard edits"
    judges_hard = True
