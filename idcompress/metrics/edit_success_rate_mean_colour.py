"""What `edit_success_rate` gives for no edit at all: the input photograph's mean colour, painted everywhere.

Where content moves, a flat picture is often nearer in PSNR to the true edit than the photograph is. A rate of success
says something by as much as it lies above this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import edit_success_rate

if TYPE_CHECKING:
    from ..types import Batch


class Metric(edit_success_rate.Metric):
    """1 or 0 per easy example, the same for every model; the lower, the more `edit_success_rate` means."""

    higher_is_better = False
    compares = "the input photograph's mean colour and the input photograph, each with the true edit; easy edits"

    def per_image(self, batch: Batch) -> list[float]:
        means = [example.image.mean(dim=(1, 2), keepdim=True) for example in batch.examples]
        return [
            self._succeeds(example, mean.expand_as(output))
            for example, mean, output in zip(batch.examples, means, batch.outputs, strict=True)
        ]
