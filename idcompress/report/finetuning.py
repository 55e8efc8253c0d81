"""Fine-tuning, drawn: the validation images as they recover, and what the page says of it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

from .collect import Compression, Stage
from .figures import Picture, recovery_curve
from .tables.table import MISSING, Cell, Table

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


def tuned_point(compression: Compression) -> tuple[int, dict[str, float | None]] | None:
    """Depth and metrics of the fine-tuned model by the depth search's own measure; None where it was not taken."""
    stage = compression.stage("finetune")
    judged = stage.metrics.get("judged") if stage else None
    return (int(stage.metrics["depth"]), judged["metrics"]) if stage and judged else None


def section(compression: Compression, stage: Stage) -> tuple[str, list[Table | Picture]]:
    """What the fine-tuning did: in words, before and after in numbers, over its updates, and in pictures."""
    entry, metrics, judged = stage.entry, stage.metrics, stage.metrics["judged"]
    kept, cut = metrics["kept_step"], _cut(metrics)
    text = f"{entry['steps']} updates of {entry['batch_size']} images at {cut}, loss={entry['loss']}, on "
    text += f"{entry['data']['photographs']} photographs, of which those below were only looked at. "
    if kept is None:
        text += f"A threshold is missed even so ({'; '.join(judged['missed'])}): the searched depth stays, untrained."
    elif kept == 0:
        text += "No validation was better than the start, so its weights are kept."
    else:
        text += f"The weights of update {kept} are kept." + (" All thresholds hold again." if judged else "")
    units = {name: row["unit"] for name, row in compression.evaluations[0].values.items()}
    shown = next(row for row in reversed(stage.trace) if row["step"] == kept or not kept)
    table = _before_and_after(compression, stage, shown, units)
    parts: list[Table | Picture] = [table, recovery_curve(stage.trace, units)]
    assert stage.folder is not None
    grid = stage.folder / "previews" / f"step_{shown['step']:06d}.png"
    if grid.is_file():
        alt = f"validation images: input, full model, {cut} before fine-tuning and at update {shown['step']}"
        with Image.open(grid, formats=("PNG",)) as image:
            parts.append(Picture(grid.read_bytes(), alt, min(image.width, 840)))
    return text, parts


def _before_and_after(
    compression: Compression, stage: Stage, shown: Mapping[str, Any], units: Mapping[str, str]
) -> Table:
    metrics, judged, search = stage.metrics, stage.metrics["judged"], compression.stage("depth_search")
    rows: list[list[Cell]] = []
    probed = {row.get("depth"): row for row in search.trace} if search else {}
    for name in judged.get("metrics", {}):
        before = probed.get(metrics["depth"], {}).get("num_images", judged["num_images"])
        count = f"{judged['num_images']}" if before == judged["num_images"] else f"{before} and {judged['num_images']}"
        label = f"{name}, {count} images of the depth search"
        rows.append([label, _value(name, probed.get(metrics["depth"], {}), units), _value(name, judged, units)])
    for name in metrics["before"]:
        label = f"{name}, {metrics['num_images']} validation images"
        rows.append([label, _value(name, stage.trace[0], units), _value(name, shown, units)])
    return Table([_cut(metrics), "before", f"after {shown['step']} updates"], rows)


def _cut(metrics: Mapping[str, Any]) -> str:
    """What was trained, in words."""
    return f"depth {metrics['depth']}" if metrics["depth"] is not None else str(metrics["kept"])


def _value(name: str, row: Mapping[str, Any], units: Mapping[str, str]) -> str:
    """A metric of a row of a trace, or of what was judged; "-" where nothing was compared, or nothing says why."""
    value = row.get("metrics", {}).get(name)
    if value is None:
        return "exact" if name in row.get("perfect", ()) else MISSING
    return f"{value:.4g} {units.get(name, '')}".rstrip()
