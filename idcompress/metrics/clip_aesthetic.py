"""CLIP aesthetic score, about 1 to 10: a linear head on the CLIP embedding of the output, trained on people's ratings.

The head has five linear layers without activations (dropout between them in training only) on the unit embedding of
ViT-L/14, images through CLIP's own preprocessing. Source: the improved aesthetic predictor (LAION), SAC + Logos + AVA1.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, ClassVar

from ..errors import IdcError
from ..runs.files import file_digest
from ._clip import ClipMetric
from ._weights import find_weights, load_state

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Batch

HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"
_SOURCE = f"https://github.com/christophschuhmann/improved-aesthetic-predictor ({HEAD_FILE})"
_LAYERS = (0, 2, 4, 6, 7)  # what lies between is dropout


class Metric(ClipMetric):
    """The score of every output; it is compared with nothing."""

    compares = "the output alone, with people's ratings"
    weights: ClassVar[str] = f"{ClipMetric.weights}; {_SOURCE}"

    def __init__(
        self, *, model: str = "ViT-L-14", tag: str = "openai", weights: str = "", head: str = "", device: str = "cpu"
    ) -> None:
        """Find, check and load the weights.

        Args:
            model, tag, weights, device: as of the other CLIP metrics.
            head: the head's file; "": IDC_WEIGHTS, then the caches.

        Raises:
            IdcError: weights are absent, or the head is no such head or for another CLIP; at once.
        """
        path = find_weights((HEAD_FILE,), path=head, source=_SOURCE, metric="clip_aesthetic", key="head")
        state = load_state(path)
        wanted = {f"layers.{number}.{kind}" for number in _LAYERS for kind in ("weight", "bias")}
        if set(state) != wanted:
            raise IdcError(f"clip_aesthetic: {path} is no head of five linear layers; want {HEAD_FILE}")
        super().__init__(model=model, tag=tag, weights=weights, device=device)
        self.weight_digests[path.name] = file_digest(path)
        self._head = [(state[f"layers.{n}.weight"].double(), state[f"layers.{n}.bias"].double()) for n in _LAYERS]
        widths = [(len(bias), *weight.shape) for weight, bias in self._head]
        given, wants = self.clip.encode_text("").shape[0], widths[0][-1]
        if wants != given:
            raise IdcError(
                f"clip_aesthetic: the head takes {wants} features and CLIP gives {given}; "
                "want metrics.clip_aesthetic.model=ViT-L-14"
            )
        ins = [width[-1] for width in widths]
        if widths != [(out, out, into) for into, out in itertools.pairwise([*ins, 1])]:
            raise IdcError(f"clip_aesthetic: {path} is no head of five linear layers; want {HEAD_FILE}")

    def per_image(self, batch: Batch) -> list[float]:
        return [self._score(self.clip.encode_image(output, crop=True)) for output in batch.outputs]

    def _score(self, embedding: Tensor) -> float:
        for weight, bias in self._head:
            embedding = weight @ embedding + bias
        return float(embedding)
