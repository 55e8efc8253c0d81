"""The levels of a U-Net and what each costs: parameters, multiply-accumulates, time.

Level k is encoder unit k with the decoder unit that reads its skip (an upsampler belongs to the unit before it); the
last level is the middle block. A cut at depth D keeps levels 1 .. D and what lies outside of all: the output head,
which counts in sums and totals and in no level's own share, and the time embedding, which the paper does not count.

Source: the rule that gives every cell of the paper's Tab. S7, columns of parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .latency import rounds
from .macs import gmacs_by_module
from .network import network_inputs
from .parameters import count_parameters


def level_modules(unet: Any) -> list[tuple[str, ...]]:
    """Names of the modules of each level that a U-Net has, outermost level first."""
    encoder: list[tuple[str, ...]] = [("conv_in",)]
    for number, block in unet.down_blocks.named_children():
        encoder += _layers(block, f"down_blocks.{number}")
        encoder += [(name,) for name in _samplers(block, "downsamplers", f"down_blocks.{number}")]
    decoder: list[tuple[str, ...]] = []
    for number, block in unet.up_blocks.named_children():
        decoder += _layers(block, f"up_blocks.{number}")
        decoder[-1] += tuple(_samplers(block, "upsamplers", f"up_blocks.{number}"))
    levels = [e + d for e, d in zip(encoder, reversed(decoder), strict=True)]
    has_middle = unet.mid_block is not None and unet.config.get("depth") is None  # a cut U-Net's stub is no level
    return [*levels, ("mid_block",)] if has_middle else levels


def _layers(block: Any, prefix: str) -> list[tuple[str, ...]]:
    kinds = ("resnets", "attentions") if getattr(block, "attentions", None) else ("resnets",)
    return [tuple(f"{prefix}.{kind}.{name}" for kind in kinds) for name, _ in block.resnets.named_children()]


def _samplers(block: Any, kind: str, prefix: str) -> list[str]:
    samplers = getattr(block, kind, None)
    return [f"{prefix}.{kind}.{name}" for name, _ in samplers.named_children()] if samplers else []


def level_costs(unet: Any, sample_size: int, *, encoder_tokens: int = 77) -> list[dict[str, float]]:
    """Parameters and MACs of one call for one image, level by level.

    Args:
        unet: on any device; of one that is cut, the levels that it still has.
        sample_size: side of the latents.
        encoder_tokens: length of the text embedding.

    Returns:
        per level `level` (1 is the outermost), `params`, `cumulative_params` and their percentages without the time
        embedding; `file_params`, all parameters of a U-Net that is cut at this depth; `gmacs` (convolutions and linear
        layers) with percentages, the sum being that of the cut U-Net; `gmacs_with_attention`.
    """
    inputs = network_inputs(unet, sample_size=sample_size, encoder_tokens=encoder_tokens, device="meta")
    counted = gmacs_by_module(unet, inputs)
    in_file, total = count_parameters(unet)
    gmacs = counted[""][0]
    levels = level_modules(unet)
    params = [sum(count_parameters(unet.get_submodule(name))[0] for name in names) for names in levels]
    own = [tuple(sum(counted.get(name, (0.0, 0.0))[i] for name in names) for i in (0, 1)) for names in levels]
    rows: list[dict[str, float]] = []
    kept_params = total - sum(params)
    kept_gmacs = gmacs - sum(plain for plain, _ in own)
    for level, (number, (plain, with_attention)) in enumerate(zip(params, own, strict=True), start=1):
        kept_params += number
        kept_gmacs += plain
        rows.append(
            {
                "level": level,
                "params": number,
                "params_pct": 100 * number / total,
                "cumulative_params": kept_params,
                "cumulative_pct": 100 * kept_params / total,
                "file_params": kept_params + in_file - total,
                "gmacs": plain,
                "gmacs_pct": 100 * plain / gmacs,
                "cumulative_gmacs_pct": 100 * kept_gmacs / gmacs,
                "gmacs_with_attention": with_attention,
            }
        )
    return rows


def level_times(
    unet: Any,
    inputs: Mapping[str, Any],
    *,
    warmup: int,
    repeats: int,
    synchronise: Callable[[], None],
    limit_s: float | None = None,
    what: str = "",
) -> list[list[float]]:
    """Milliseconds of each level in each of `repeats` calls after `warmup` unmeasured ones: (levels, repeats).

    Calls are fewer where they take long, see `latency.rounds`.

    The device is synchronised around every module, so that a level's time is its own; the levels together take longer
    than an undisturbed call.
    """
    times_ms: list[list[float]] = [[] for _ in level_modules(unet)]
    unmeasured = 0
    started = [0.0]

    def begin(module: nn.Module, args: Any) -> None:
        synchronise()
        started[0] = time.perf_counter()

    def end(module: nn.Module, args: Any, output: Any) -> None:
        synchronise()
        times_ms[level_of[module]][-1] += (time.perf_counter() - started[0]) * 1000

    level_of = {unet.get_submodule(name): i for i, names in enumerate(level_modules(unet)) for name in names}
    handles = [m.register_forward_pre_hook(begin) for m in level_of] + [m.register_forward_hook(end) for m in level_of]
    try:
        with torch.inference_mode():
            for measured in rounds(warmup, repeats, limit_s=limit_s, what=what):
                unmeasured += not measured
                for level in times_ms:
                    level.append(0.0)
                unet(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [level[unmeasured:] for level in times_ms]
