"""Features of the Inception network that FID and KID are defined on, collected over a set of images."""

from __future__ import annotations

import importlib
import tempfile
from abc import abstractmethod
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..adapters.weights import find_weights, load_state
from ..artifacts.files import file_digest
from ..errors import IdcError, did_you_mean
from ._base import AGAINST, ImageMetric, MetricValue, check_outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..types import Batch

WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"
_SOURCE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS_FILE}"
_MIN_IMAGES = 2


class InceptionMetric(ImageMetric):
    """A distance between the features of all outputs and those of all real images; the set has one value.

    Features are the 2048 of the last pooling, of 8-bit images, one image at a time; statistics are float64 over
    the examples in index order.
    """

    unit = ""
    higher_is_better = False
    needs = ("image",)
    compares = f"all outputs with every {AGAINST['image']}"
    weights: ClassVar[str] = f"{WEIGHTS_FILE} ({_SOURCE}), by torch-fidelity (pip install idcompress[fid])"

    def __init__(self, *, against: str = "image", weights: str = "", device: str = "cpu") -> None:
        """Find and check the weights.

        Args:
            against: `image`, `target` or `references`: what counts as real.
            weights: the standard Inception file; "": looked for.
            device: where the network runs.

        Raises:
            IdcError: torch-fidelity or the file is absent, or the file is not the standard one.
        """
        super().__init__()
        name = type(self).__module__.rsplit(".", 1)[-1]
        if against not in AGAINST:
            raise IdcError(f"no image to compare with is called {against!r}{did_you_mean(against, AGAINST)}")
        self.against = against
        self.needs = (against,)
        self.compares = f"all outputs with every {AGAINST[against]}"
        self._device = device
        path = _find(weights, name)
        self._network = _load(path, device)
        self.weight_digests[path.name] = file_digest(path)
        self._features: dict[int, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def distance(self, features: Tensor, others: Tensor) -> float:
        """The distance between two sets of features, (N, 2048) and (M, 2048), float64."""

    def per_image(self, batch: Batch) -> list[float]:
        raise NotImplementedError("this distance belongs to a set of images: use update and compute")

    def update(self, batch: Batch) -> None:
        check_outputs(batch)
        for position, (example, output) in enumerate(zip(batch.examples, batch.outputs, strict=True)):
            other = batch.references if self.against == "references" else getattr(example, self.against)
            if other is not None:
                other = other[position] if self.against == "references" else other
                self._features[example.index] = (self._embed(output), self._embed(other))

    def _embed(self, image: Tensor) -> Tensor:
        pixels = (image[None].clamp(0, 1) * 255).round().to(torch.uint8).to(self._device)
        with torch.inference_mode():
            features: Tensor = self._network(pixels)[0]
        return features[0].cpu()

    def compute(self) -> MetricValue:
        pairs = [features for _, features in sorted(self._features.items())]
        if len(pairs) < _MIN_IMAGES:
            return MetricValue(None, {}, f"a set of at least {_MIN_IMAGES} images is needed, got {len(pairs)}")
        outputs, others = (torch.stack(side).double() for side in zip(*pairs, strict=True))
        return MetricValue(self.distance(outputs, others), {})


def _find(weights: str, metric: str) -> Path:
    if find_spec("torch_fidelity") is None:
        raise IdcError(f"{metric} needs the package torch-fidelity: pip install 'idcompress[fid]'")
    path = find_weights((WEIGHTS_FILE,), path=weights, source=_SOURCE, metric=metric)
    if not file_digest(path).startswith(WEIGHTS_FILE.rsplit("-", 1)[1].removesuffix(".pth")):
        raise IdcError(f"{path} is not the standard {WEIGHTS_FILE} that {metric} is defined on; get it from {_SOURCE}")
    return path


@lru_cache(maxsize=1)
def _load(path: Path, device: str) -> nn.Module:
    library: Any = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    # torch-fidelity unpickles whatever the file holds; it is given a copy of the plain tensors only.
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        plain = Path(folder) / "inception.pth"
        torch.save(load_state(path), plain)
        network: Any = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(plain))
    loaded: nn.Module = network.eval().to(device)
    return loaded
