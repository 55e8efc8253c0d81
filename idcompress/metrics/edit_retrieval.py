"""Share of easy edits that can be told from the output, among all built-in edits of the photograph.

An edit is found where its true result is the nearest to the output in PSNR, of the true results of all edits and the
photograph itself. Chance does not pass: the unchanged photograph scores 0, and a flat picture next to nothing. Hard
edits are left to `hard_edit_retrieval`; prompts that are no built-in edit, and edits that change nothing in their
photograph, to nobody.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..images.edits import edit_for_prompt, nearest_results
from . import edit_success_rate
from ._metric import check_same_size

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Example


class Metric(edit_success_rate.Metric):
    """1 or 0 per easy example; its mean is the rate."""

    compares = "output with the true results of all edits of its photograph; easy edits"

    def _succeeds(self, example: Example, output: Tensor) -> float:
        edit = edit_for_prompt(example.prompt)
        if edit is None or example.target is None or edit.hard != self.judges_hard:
            return math.nan
        check_same_size(example, output, example.target, "target")
        if example.target.equal(example.image):
            return math.nan
        image = example.image.to(output.device)
        return float(nearest_results(output[None], image[None]) == [edit.name])
