"""Milliseconds of a call on this machine: median and spread, after warm-up, with the device synchronised.

Two callables are compared by interleaving them in one run, in turns that swap who goes first: whatever else slows the
machine meets both alike, and the ratio of each pair says more than two separate medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..console import progress_bar
from ..errors import IdcError
from .cost import Cost
from .network import network_inputs

if TYPE_CHECKING:
    from torch import nn

    from .components import Component

LEAST = 3  # measured calls, however long they take
FULL_WIDTH = 320  # channels of Stable Diffusion's first level


def is_full_width(unet: Any) -> bool:
    """Whether milliseconds of a U-Net may be told: it is at least as wide as Stable Diffusion's.

    Narrower ones leave most of a machine idle; their MACs, bytes, network calls and ratios are told instead.
    """
    return int(unet.config.block_out_channels[0]) >= FULL_WIDTH


@dataclass(frozen=True)
class Latency:
    """Times of one callable: the median, the quartiles, and every measured call, all in milliseconds."""

    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    all_ms: tuple[float, ...]


@dataclass(frozen=True)
class LatencyRatio:
    """`other` against `base`, measured in turns: median and quartiles of the pairs' time ratios, and both latencies."""

    median: float
    lower_quartile: float
    upper_quartile: float
    base: Latency
    other: Latency


def synchroniser(device: torch.device | str) -> Callable[[], None]:
    """What waits for all work queued on a device; nothing to wait for on the CPU."""
    kind = torch.device(device).type
    if kind == "cpu":
        return lambda: None
    module: Any = getattr(torch, kind)
    return lambda: module.synchronize(device)


def rounds(warmup: int, repeats: int, *, limit_s: float | None = None, what: str = "") -> Iterator[bool]:
    """Whether each round of calls is measured: first those that are not, then those that are.

    Args:
        limit_s: seconds after which measured rounds end, if there were LEAST of them; unmeasured ones end after a
            quarter, if there was one. None sets no limit.
        what: is timed, for a progress bar; empty for none.
    """
    limits = ((warmup, 1, 0.25, False), (repeats, LEAST, 1.0, True))
    with progress_bar(f"timing {what}", warmup + repeats) if what else nullcontext(lambda: None) as advance:
        for number, least, share, measured in limits:
            began = time.monotonic()
            for done in range(number):
                if limit_s is not None and done >= least and time.monotonic() - began >= share * limit_s:
                    break
                yield measured
                advance()


def measure_latency(
    function: Callable[[], object],
    *,
    warmup: int = 3,
    repeats: int = 10,
    synchronise: Callable[[], None] = lambda: None,
    limit_s: float | None = None,
    what: str = "",
) -> Latency:
    """Time `repeats` calls after `warmup` unmeasured ones, or fewer, see `rounds`."""
    _check(warmup, repeats)
    times_ms = []
    for measured in rounds(warmup, repeats, limit_s=limit_s, what=what):
        if measured:
            times_ms.append(_time_ms(function, synchronise))
        else:
            function()
    return _latency(times_ms)


def measure_ratio(
    base: Callable[[], object],
    other: Callable[[], object],
    *,
    warmup: int = 3,
    repeats: int = 10,
    synchronise: Callable[[], None] = lambda: None,
    limit_s: float | None = None,
    what: str = "",
) -> LatencyRatio:
    """Time `other` against `base` in `repeats` turns of one call each, or fewer, see `rounds`.

    A ratio below 1 says that `other` is faster.
    """
    _check(warmup, repeats)
    times_ms: tuple[list[float], list[float]] = ([], [])
    for measured in rounds(warmup, repeats, limit_s=limit_s, what=what):
        for which in (0, 1) if len(times_ms[0]) % 2 == 0 else (1, 0):
            if measured:
                times_ms[which].append(_time_ms((base, other)[which], synchronise))
            else:
                (base, other)[which]()
    lower, median, upper = _quartiles([o / b for b, o in zip(*times_ms, strict=True)])
    return LatencyRatio(median, lower, upper, _latency(times_ms[0]), _latency(times_ms[1]))


def _time_ms(function: Callable[[], object], synchronise: Callable[[], None]) -> float:
    synchronise()
    start = time.perf_counter()
    function()
    synchronise()
    return (time.perf_counter() - start) * 1000


def _latency(times_ms: list[float]) -> Latency:
    lower, median, upper = _quartiles(times_ms)
    return Latency(median, lower, upper, tuple(times_ms))


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, median, upper


def _check(warmup: int, repeats: int) -> None:
    if warmup < 0 or repeats < 1:
        raise IdcError(f"latency wants warmup >= 0 and repeats >= 1, got warmup={warmup} and repeats={repeats}")


def caller(parts: Sequence[Component], compiled: bool = False) -> Callable[[], None]:
    """A function that calls every network once, one after the other, without gradients.

    Args:
        compiled: compile the networks; the first calls, which compile them, are slow.
    """
    calls = [(torch.compile(part.network, dynamic=False) if compiled else part.network, part.inputs) for part in parts]

    def call() -> None:
        with torch.inference_mode():
            for network, inputs in calls:
                network(**inputs)

    return call


class NetworkLatency(Cost):
    """Milliseconds of one call of every network after the other, on the device that they are on."""

    unit = "ms"

    def __init__(self, *, batch_size: int = 1, warmup: int = 3, repeats: int = 10) -> None:
        """Args: batch_size: images per call; warmup, repeats: calls before and while timing."""
        _check(warmup, repeats)
        self.batch_size = batch_size
        self.warmup = warmup
        self.repeats = repeats

    def measure(
        self, modules: Sequence[nn.Module], inputs: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, float]:
        given = [network_inputs(m, batch_size=self.batch_size) for m in modules] if inputs is None else inputs

        def call() -> None:
            with torch.inference_mode():
                for module, arguments in zip(modules, given, strict=True):
                    module(**arguments)

        device = next(modules[0].parameters()).device
        latency = measure_latency(call, warmup=self.warmup, repeats=self.repeats, synchronise=synchroniser(device))
        return {
            "latency_ms": latency.median_ms,
            "latency_lower_quartile_ms": latency.lower_quartile_ms,
            "latency_upper_quartile_ms": latency.upper_quartile_ms,
        }
