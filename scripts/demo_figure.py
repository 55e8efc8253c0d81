"""The README's pictures, from the images of a compress run: python scripts/demo_figure.py RUN_FOLDER docs/demo.png"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

CELL, GAP, HEAD, SIDE = 112, 4, 34, 150  # px; larger pictures keep their size


def main(run: Path, target: Path) -> None:
    folders = sorted((run / "evaluate").glob("steps_*"), key=lambda p: -int(p.name.split("_")[1])) or [run / "evaluate"]
    first = folders[0] / "images"
    by_steps = {folder.name.removeprefix("steps_"): folder / "images" for folder in folders}
    rows = sorted(path.stem for path in (first / "depth_skipped").glob("*.png"))
    if json.loads((folders[0] / "metrics.json").read_text())["task"] == "stablesr":
        columns = [("low resolution,\nenlarged", first / "image"), ("original model,\n50 steps", first / "original")]
        columns += [(f"compressed,\n{next(iter(by_steps))} steps", first / "compressed")]
        columns += [("true photograph", first / "target")]
        rows = sorted(path.stem for path in (first / "original").glob("*.png"))[:3]
    else:
        columns = [(kind, first / kind) for kind in ("image", "target", "condition") if (first / kind).is_dir()]
        columns += [("original\n50 steps", first / "original"), ("pruned\n50 steps", first / "depth_skipped")]
        for steps, images in by_steps.items():
            columns += [(f"{kind}\n{steps} steps", images / kind) for kind in ("compressed", "uniform")]
    names = {"image": "input", "target": "true edit"}
    cell = max(CELL, Image.open(first / "original" / f"{rows[0]}.png").width)
    sheet = Image.new("RGB", (SIDE + len(columns) * (cell + GAP), HEAD + len(rows) * (cell + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, (title, folder) in enumerate(columns):
        draw.multiline_text((SIDE + x * (cell + GAP) + 4, 4), names.get(title, title), fill="black")
        for y, name in enumerate(rows):
            picture = Image.open(folder / f"{name}.png").resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(picture, (SIDE + x * (cell + GAP), HEAD + y * (cell + GAP)))
    for y, name in enumerate(rows):
        label = name.split("_", 1)[1].replace("_", " ")
        draw.multiline_text((4, HEAD + y * (cell + GAP) + cell // 2), label, fill="black")
    sheet.save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
