"""A stub at the cut of a depth-skipped U-Net: one convolution, fitted in closed form, in place of the zeros.

It predicts the hidden state that the whole model has at the cut from what the encoder ends on there.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .unet import StubHidden

RIDGE = 1e-3  # of the mean square of the features


@torch.no_grad()
def fit_stub(whole: Any, cut: Any, runs: Iterable[Callable[[Any], Any]]) -> float:
    """Fit the stub of a cut U-Net by ridge regression, in place, in float64.

    The normal equations have a side of channels x kernel x kernel: 1 GB for a 3x3 stub of 1280 channels.

    Args:
        whole: the U-Net that `cut` was cut from.
        runs: each calls the U-Net that it is given once, both on the same input.

    Returns:
        The share of the hidden state's variance that the stub explains on these inputs.
    """
    stub: StubHidden = cut.mid_block
    conv, kernel = stub.conv, stub.conv.kernel_size[0]
    block, first = next(cut.up_blocks.named_children())
    layer = next(name for name, _ in first.resnets.named_children())
    equations = _NormalEquations(conv.in_channels * kernel**2 + 1, conv.out_channels)
    for run in runs:
        hidden = _input_of(whole.get_submodule(f"up_blocks.{block}.resnets.{layer}"), run, whole)
        skip = _input_of(stub, run, cut)
        equations.add(
            _with_ones(F.unfold(skip.double().cpu(), kernel, padding=kernel // 2)),
            hidden[:, : conv.out_channels].double().cpu().flatten(2),
        )
    solution, explained = equations.solve(RIDGE)
    conv.weight.copy_(solution[:-1].T.reshape(conv.weight.shape))
    conv.get_parameter("bias").copy_(solution[-1])
    return explained


def _input_of(module: nn.Module, run: Callable[[Any], Any], network: Any) -> Tensor:
    """The first input of a module while a network runs."""
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    try:
        run(network)
    finally:
        handle.remove()
    return found[0]


def _with_ones(features: Tensor) -> Tensor:
    """Features (B, F, N) and a row of ones, (B, F + 1, N)."""
    return torch.cat([features, features.new_ones(len(features), 1, features.shape[2])], dim=1)


class _NormalEquations:
    """Least squares over rows that come batch by batch; the last feature is the constant, which is not shrunk."""

    def __init__(self, features: int, outputs: int) -> None:
        self.gram = torch.zeros(features, features, dtype=torch.float64)
        self.cross = torch.zeros(features, outputs, dtype=torch.float64)
        self.sums, self.squares, self.rows = torch.zeros(outputs, dtype=torch.float64), 0.0, 0

    def add(self, features: Tensor, outputs: Tensor) -> None:
        """Args: features: (B, F, N); outputs: (B, C, N), float64."""
        features, outputs = (values.transpose(0, 1).flatten(1) for values in (features, outputs))
        self.gram += features @ features.T
        self.cross += features @ outputs.T
        self.sums += outputs.sum(1)
        self.squares += float(outputs.square().sum())
        self.rows += features.shape[1]

    def solve(self, ridge: float) -> tuple[Tensor, float]:
        """Coefficients (F, C), and the share of the outputs' variance that they explain."""
        penalty = torch.full((len(self.gram),), ridge * float(self.gram.diagonal()[:-1].mean()), dtype=torch.float64)
        penalty[-1] = 0
        solution = torch.linalg.solve(self.gram + penalty.diag(), self.cross)
        left = self.squares - float((2 * self.cross - self.gram @ solution).mul(solution).sum())
        variance = self.squares - float(self.sums.square().sum()) / self.rows
        return solution, 1 - left / variance
