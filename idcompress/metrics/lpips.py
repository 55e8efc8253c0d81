"""Learned perceptual distance of Zhang et al. (CVPR 2018), version 0.1; 0 for identical images.

ImageNet trunk of torchvision (`net` alex, squeeze or vgg) under the linear heads of the `lpips` package, and the
package's own forward. Values of different trunks do not compare. Images are taken one at a time: no batch size shows.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..errors import IdcError, did_you_mean
from ..runs.files import file_digest
from ._metric import PairMetric, check_min_size
from ._weights import find_weights, load_state, tensors_digest

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class _Trunk:
    """A published trunk: torchvision's name, its file, other names it goes by, and the digest of its features."""

    architecture: str
    file: str
    other_names: tuple[str, ...]
    digest: str
    minimum_px: int


_TRUNKS = {
    "alex": _Trunk(
        "alexnet",
        "alexnet-owt-7be5be79.pth",
        ("alexnet_features.pth", "alexnet-owt-4df8aa71.pth"),
        "195266a4c8e96483085621ac3389a6c24f1dd0963c9ac0e001705d24ece83273",
        31,
    ),
    "squeeze": _Trunk(
        "squeezenet1_1",
        "squeezenet1_1-b8a52dc0.pth",
        ("squeezenet1_1_features.pth", "squeezenet1_1-f364aa15.pth"),
        "e93098750a62e61ef70cc50f01c17f7eccd8b4c075997affea326c113b362a6e",
        17,
    ),
    "vgg": _Trunk("vgg16", "vgg16-397923af.pth", (), "", 16),
}


class Metric(PairMetric):
    """LPIPS of the output against the reference result, or another image."""

    unit = ""
    higher_is_better = False
    weights: ClassVar[str] = "alexnet-owt-7be5be79.pth of torchvision (download.pytorch.org/models); heads in `lpips`"

    def __init__(
        self, *, against: str = "references", net: str = "alex", weights: str = "", device: str = "cpu"
    ) -> None:
        """Find and check the weights.

        Args:
            against: `references`, `target` or `image`.
            net: `alex` (as in most tables), `squeeze` or `vgg`.
            weights: torchvision's file for that trunk, or its features alone; "": looked for.
            device: where the network runs.

        Raises:
            IdcError: the file is absent, or is not the published one.
        """
        super().__init__(against=against)
        self.name = type(self).__module__.rsplit(".", 1)[-1]  # its configuration key; target_lpips has its own
        if net not in _TRUNKS:
            raise IdcError(f"{self.name}: no trunk is called net={net!r}{did_you_mean(net, _TRUNKS)}")
        self.net = net
        self.device = device
        trunk = _TRUNKS[net]
        source = f"https://download.pytorch.org/models/{trunk.file}"
        path = find_weights((trunk.file, *trunk.other_names), path=weights, source=source, metric=self.name)
        self.model = _load(net, path, device)
        self.weight_digests[path.name] = file_digest(path)

    def compare(self, output: Tensor, other: Tensor) -> float:
        check_min_size(output, _TRUNKS[self.net].minimum_px, f"{self.name} (net={self.net})")
        with torch.inference_mode():
            value = self.model(output[None].to(self.device), other[None].to(self.device), normalize=True)
        return float(value)


@lru_cache(maxsize=2)
def _load(net: str, path: Path, device: str) -> nn.Module:
    """The `lpips` model with a checked trunk and the package's heads; the global random state stays as it was."""
    import lpips
    import torchvision

    trunk = _TRUNKS[net]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package calls torchvision by a deprecated argument
        wanted = getattr(torchvision.models, trunk.architecture)(weights=None).features
        model: Any = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    state = load_state(path)
    features = {key: value for key, value in state.items() if key.startswith("features.")}
    shapes = {f"features.{key}": value.shape for key, value in wanted.state_dict().items()}
    if {key: value.shape for key, value in features.items()} != shapes:
        raise IdcError(f"{path} is no {trunk.architecture} of torchvision; want {trunk.file}")
    published = file_digest(path).startswith(trunk.file.rsplit("-", 1)[1].removesuffix(".pth"))
    if not published and tensors_digest(features) != trunk.digest:
        raise IdcError(
            f"{path} has the shapes of {trunk.file} and other values; LPIPS is defined on the published ones"
        )
    wanted.load_state_dict({key.removeprefix("features."): value for key, value in features.items()})
    for number in range(1, model.net.N_slices + 1):
        for name, module in getattr(model.net, f"slice{number}").named_children():
            module.load_state_dict(wanted[int(name)].state_dict())
    heads = torch.load(
        Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth", map_location="cpu", weights_only=True
    )
    for name, value in heads.items():
        layer, key = name.split(".", 1)
        model.get_submodule(layer).load_state_dict({key: value})
    loaded: nn.Module = model.eval().to(device)
    return loaded
