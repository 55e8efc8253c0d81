"""Depth-skip plans: which blocks of a U-Net stay at a depth, and the shape of the zeros at the cut.

The U-Net's encoder is a row of units, each leaving one skip: conv_in, then every residual layer and downsampler. The
decoder is the mirrored row, each unit (a residual layer, with the upsampler behind it if there is one) taking one
skip. Depth D keeps the first D encoder units and the last D decoder units; the full depth adds the middle block.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class UNetShape:
    """All that a plan needs to know of a U-Net.

    Attributes:
        down_layers: residual layers of each down block, outermost first.
        downsamplers: whether each down block ends on a downsampler.
        up_layers: residual layers of each up block, innermost first, as the decoder runs them.
        up_in_channels: input channels (state + skip) of each decoder unit, in running order.
        skip_channels: channels of each encoder unit's skip, in running order.
    """

    down_layers: tuple[int, ...]
    downsamplers: tuple[bool, ...]
    up_layers: tuple[int, ...]
    up_in_channels: tuple[int, ...]
    skip_channels: tuple[int, ...]

    def __post_init__(self) -> None:
        units = 1 + sum(self.down_layers) + sum(self.downsamplers)
        if not units == sum(self.up_layers) == len(self.up_in_channels) == len(self.skip_channels):
            raise ValueError(
                f"not a U-Net with one decoder layer per skip: {units} encoder units, {sum(self.up_layers)} decoder "
                f"layers, {len(self.skip_channels)} skips"
            )

    @property
    def full_depth(self) -> int:
        """Encoder units plus the middle block: 13 for Stable Diffusion."""
        return len(self.skip_channels) + 1


@dataclass(frozen=True)
class SkipPlan:
    """What stays at one depth; a value that compares, prints and goes to JSON.

    Attributes:
        depth: levels kept, 1-based as in the paper; depth == full_depth is the uncut model.
        down_layers: residual layers kept of each down block, from its front; None drops the block.
        downsamplers: whether each down block keeps its downsampler.
        up_layers: residual layers kept of each up block, from its back; 0 drops the block.
        hidden_channels: channels of the zeros that enter the first kept decoder layer; 0 for the uncut model.
    """

    depth: int
    full_depth: int
    down_layers: tuple[int | None, ...]
    downsamplers: tuple[bool, ...]
    up_layers: tuple[int, ...]
    hidden_channels: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def skip_plan(shape: UNetShape, depth: int) -> SkipPlan:
    """Plan the cut of a U-Net at a depth.

    Args:
        depth: 1 .. shape.full_depth.

    Raises:
        ValueError: the depth is out of range.

    Source: Kim et al., ACCV 2024, Sec. 3.2; block bookkeeping as in the released code, channels from the model.
    """
    check_depth(depth, shape.full_depth)
    if depth == shape.full_depth:
        return SkipPlan(depth, depth, shape.down_layers, shape.downsamplers, shape.up_layers, 0)

    down_layers: list[int | None] = []
    downsamplers: list[bool] = []
    left = depth - 1  # conv_in is the first unit
    for layers, has_downsampler in zip(shape.down_layers, shape.downsamplers, strict=True):
        down_layers.append(min(layers, left) if left > 0 else None)
        downsamplers.append(has_downsampler and left > layers)
        left -= min(layers + has_downsampler, left)

    up_layers: list[int] = []
    left = depth
    for layers in reversed(shape.up_layers):
        up_layers.insert(0, min(layers, left))
        left -= up_layers[0]

    hidden_channels = shape.up_in_channels[-depth] - shape.skip_channels[depth - 1]
    return SkipPlan(depth, shape.full_depth, tuple(down_layers), tuple(downsamplers), tuple(up_layers), hidden_channels)


def check_depth(depth: int, full_depth: int) -> None:
    """Raise ValueError unless 1 <= depth <= full_depth."""
    if not 1 <= depth <= full_depth:
        raise ValueError(f"depth must be between 1 and {full_depth} for this U-Net, got {depth}")
