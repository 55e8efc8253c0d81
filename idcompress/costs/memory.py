"""Peak memory of a call in MB: of the GPU where the networks are on one, else of the whole process.

On CUDA it is what the allocator handed out at most, weights included (torch.cuda.max_memory_allocated). On the CPU it
is the peak resident memory of the process during the call, everything that is loaded included: it compares runs of a
program, not parts of one. Where Linux does not let the peak be reset it is that of the process so far.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .cost import Cost
from .network import network_inputs

if TYPE_CHECKING:
    from torch import nn

_MB = 1e6


def measure_peak_memory(function: Callable[[], object], device: torch.device | str) -> tuple[str, float]:
    """Call a function once: ("peak_cuda_mb" or "peak_rss_mb", MB)."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return "peak_cuda_mb", torch.cuda.max_memory_allocated(device) / _MB
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak of the resident set
    function()
    return "peak_rss_mb", _peak_rss_mb()


def _peak_rss_mb() -> float:
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="ascii").splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / _MB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak if sys.platform == "darwin" else peak * 1024) / _MB


class PeakMemory(Cost):
    """Peak memory of one call of every network after the other."""

    unit = "MB"

    def __init__(self, *, batch_size: int = 1) -> None:
        """Args: batch_size: images per call."""
        self.batch_size = batch_size

    def measure(
        self, modules: Sequence[nn.Module], inputs: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, float]:
        given = [network_inputs(m, batch_size=self.batch_size) for m in modules] if inputs is None else inputs

        def call() -> None:
            with torch.inference_mode():
                for module, arguments in zip(modules, given, strict=True):
                    module(**arguments)

        return dict([measure_peak_memory(call, next(modules[0].parameters()).device)])
