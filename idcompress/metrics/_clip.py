"""What the CLIP metrics share: one model, found and checked once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from ._clip_model import load_clip
from ._metric import ImageMetric, MetricValue

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Example


class ClipMetric(ImageMetric):
    """A metric on CLIP embeddings."""

    unit = ""
    higher_is_better = True
    weights: ClassVar[str] = "ViT-L-14 openai (huggingface.co/timm/vit_large_patch14_clip_224.openai), by open_clip"

    def __init__(self, *, model: str = "ViT-L-14", tag: str = "openai", weights: str = "", device: str = "cpu") -> None:
        """Find, check and load the weights.

        Args:
            model: open_clip's name of the architecture.
            tag: open_clip's name of the training run.
            weights: a file, or a folder in open_clip's layout; "": IDC_WEIGHTS, then the hub's cache.
            device: where the network runs.

        Raises:
            IdcError: unknown model or tag, absent or unfit weights; at once.
        """
        super().__init__()
        self.clip = load_clip(model, tag, weights, device, type(self).__module__.rsplit(".", 1)[-1])
        self.weight_digests[self.clip.path.name] = self.clip.digest

    def compute(self) -> MetricValue:
        """The mean, with a note that names the weights if they were given and not found under their own name."""
        value = super().compute()
        if self.clip.named or value.value is None:
            return value
        note = f"CLIP weights from {self.clip.path.name}, SHA-256 {self.clip.digest[:12]}"
        return replace(value, note="; ".join(filter(None, (value.note, note))))


def captions_of(example: Example) -> tuple[str, str] | None:
    """Captions of the input and of the edited image, where the data set has them."""
    captions: tuple[str, str] | None = getattr(example, "captions", None)
    return captions


def cosine(one: Tensor, other: Tensor) -> float:
    """Cosine of two vectors (D,); NaN where one of them is zero."""
    length = float(one.norm()) * float(other.norm())
    return float(one @ other) / length if length > 0 else float("nan")
