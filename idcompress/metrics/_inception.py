"""Features of the Inception network that FID and KID are defined on, collected over a set of images."""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from abc import abstractmethod
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors.torch import load, save

from ..errors import IdcError, did_you_mean
from ..runs import cache
from ..runs.files import digest, file_digest
from ..runs.run_dir import OUTPUTS
from ._metric import AGAINST, ImageMetric, MetricValue, check_outputs, other_image
from ._weights import find_weights, load_state

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..types import Batch

WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"
_SOURCE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS_FILE}"
CACHE = OUTPUTS / "cache" / "inception"
_MIN_IMAGES = 2


class InceptionMetric(ImageMetric):
    """A distance between the features of all outputs and those of all real images; the set has one value.

    Features are the 2048 of the last pooling, of 8-bit images, one image at a time; statistics are float64 over
    the examples in index order. Features of real images are kept in CACHE, in files named by the digest of images,
    weights and kind of device: a data set is embedded once, whatever is compared with it.
    """

    unit = ""
    higher_is_better = False
    by_image = False
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

    def reset(self) -> None:
        super().reset()
        self._features: dict[int, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def distance(self, features: Tensor, others: Tensor) -> float:
        """The distance between two sets of features, (N, 2048) and (M, 2048), float64."""

    def per_image(self, batch: Batch) -> list[float]:
        raise NotImplementedError("this distance belongs to a set of images: use update and compute")

    def update(self, batch: Batch) -> None:
        check_outputs(batch)
        others = {i: other_image(batch, i, self.against) for i in range(len(batch.examples))}
        real = {i: other for i, other in others.items() if other is not None}
        for position, features in zip(real, self._real_features(list(real.values())), strict=True):
            output = self._embed(_pixels(batch.outputs[position]))
            self._features[batch.examples[position].index] = (output, features)

    def _real_features(self, images: list[Tensor]) -> Tensor:
        """(N, 2048) of real images, from the cache where these have been embedded before."""
        if not images:
            return torch.empty(0)
        pixels = [_pixels(image) for image in images]
        digests = [hashlib.sha256(image.numpy().tobytes() + str(image.shape).encode()).hexdigest() for image in pixels]
        identity = [digests, self.weight_digests, torch.device(self._device).type]
        path = CACHE / f"{digest(identity)}.safetensors"
        kept = cache.read(path, load)
        if kept is None:
            kept = {"features": torch.stack([self._embed(image) for image in pixels])}
            cache.keep(path, kept, save)
        return kept["features"]

    def _embed(self, pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            features: Tensor = self._network(pixels[None].to(self._device))[0]
        return features[0].cpu()

    def compute(self) -> MetricValue:
        pairs = [features for _, features in sorted(self._features.items())]
        if len(pairs) < _MIN_IMAGES:
            return MetricValue(None, {}, f"a set of at least {_MIN_IMAGES} images is needed, got {len(pairs)}")
        outputs, others = (torch.stack(side).double() for side in zip(*pairs, strict=True))
        return MetricValue(self.distance(outputs, others), {})


def _pixels(image: Tensor) -> Tensor:
    """8-bit values of an image (3, H, W) in [0, 1]."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


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
