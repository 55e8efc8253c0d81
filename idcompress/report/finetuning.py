"""Fine-tuning, drawn: the validation images as they recover, and what the page says of it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

_SIDE_PX = 160  # of an image in the grid, at least
_GAP_PX, _CAPTION_PX = 4, 22


def preview_grid(columns: Mapping[str, Sequence[Image.Image]]) -> bytes:
    """A PNG of captioned columns of images, a row per example; small images are enlarged without smoothing.

    Args:
        columns: caption -> images of one size, as many in every column.
    """
    first = next(iter(columns.values()))
    scale = max(1, -(-_SIDE_PX // first[0].width))
    width, height = first[0].width * scale, first[0].height * scale
    size = (len(columns) * (width + _GAP_PX) - _GAP_PX, _CAPTION_PX + len(first) * (height + _GAP_PX) - _GAP_PX)
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    for column, (caption, images) in enumerate(columns.items()):
        left = column * (width + _GAP_PX)
        draw.text((left + width / 2, _CAPTION_PX / 2), caption, fill="black", anchor="mm", font_size=14)
        for row, image in enumerate(images):
            enlarged = image.resize((width, height), Image.Resampling.NEAREST)
            grid.paste(enlarged, (left, _CAPTION_PX + row * (height + _GAP_PX)))
    file = io.BytesIO()
    grid.save(file, format="PNG")
    return file.getvalue()
