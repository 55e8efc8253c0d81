"""Large pictures, which are worked on in tiles: what is refused, and what is said before the work begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..console import say
from ..errors import IdcError

MAX_CANVAS = 2**28  # pixels that a picture is worked on at
BYTES_PER_PIXEL = 72  # of the canvas: six copies of three channels in float32, at the most
# A strip's shorter side may be enlarged so many times beyond the result, if it takes more than so many tiles.
MAX_ENLARGED = 4
MAX_STRIP_TILES = 64


def announce_tiles(
    name: str,
    size: tuple[int, int],
    target: Sequence[int],
    canvas: Sequence[int],
    tiles: int,
    steps: int,
    seconds_of_a_tile: Callable[[], float],
) -> None:
    """Say how large the work on a picture of several tiles is, before it begins.

    Args:
        size: width and height of the picture.
        target, canvas: height and width of the result, and of what is worked on, in pixels.
        tiles: of the canvas.
        seconds_of_a_tile: measures one call of the networks; called only if nothing is refused.

    Raises:
        IdcError: the canvas is larger than `MAX_CANVAS`, or the picture is a strip whose work would be mostly waste.
    """
    if tiles == 1:
        return
    whole = f"{name}, {size[0]} x {size[1]} px, would be worked on at {canvas[1]:,} x {canvas[0]:,} px"
    enlarged = min(canvas) / min(target)
    if enlarged > MAX_ENLARGED and tiles > MAX_STRIP_TILES:
        upscale = min(target) / min(size)
        least = -(-min(canvas) // int(upscale * MAX_ENLARGED))
        raise IdcError(
            f"{whole}, in {tiles:,} tiles, because its shorter side is enlarged to a whole tile; the limit for a strip "
            f"of less than {least} px across is {MAX_STRIP_TILES} tiles, so crop its longer side or widen its shorter"
        )
    if canvas[0] * canvas[1] > MAX_CANVAS:
        raise IdcError(
            f"{whole}, {canvas[0] * canvas[1] / 1e6:,.0f} megapixels; the limit is {MAX_CANVAS / 1e6:,.0f}, so crop "
            "the picture or scale it down"
        )
    seconds = seconds_of_a_tile() * tiles * steps
    megabytes = canvas[0] * canvas[1] * BYTES_PER_PIXEL / 1e6
    memory = f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"
    say(
        f"{name}: worked on at {canvas[1]:,} x {canvas[0]:,} px, {tiles:,} tiles in each of {steps} "
        f"step{'s' if steps > 1 else ''}: the U-Net takes about {_duration(seconds)}, the picture about "
        f"{memory} of memory"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
