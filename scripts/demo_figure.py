"""The README's picture, from the images of a compress run: python scripts/demo_figure.py RUN_FOLDER docs/demo.png"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

CELL, GAP, HEAD, SIDE = 112, 4, 34, 150  # px


def main(run: Path, target: Path) -> None:
    folders = sorted((run / "evaluate").glob("steps_*"), key=lambda p: -int(p.name.split("_")[1])) or [run / "evaluate"]
    first = folders[0] / "images"
    columns = [(kind, first / kind) for kind in ("image", "target", "condition") if (first / kind).is_dir()]
    columns += [("original\n50 steps", first / "original"), ("pruned\n50 steps", first / "depth_skipped")]
    for folder in folders:
        steps = folder.name.removeprefix("steps_")
        columns += [(f"{kind}\n{steps} steps", folder / "images" / kind) for kind in ("compressed", "uniform")]
    names = {"image": "input", "target": "true edit"}
    rows = sorted(path.stem for path in (first / "depth_skipped").glob("*.png"))
    sheet = Image.new("RGB", (SIDE + len(columns) * (CELL + GAP), HEAD + len(rows) * (CELL + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, (title, folder) in enumerate(columns):
        draw.multiline_text((SIDE + x * (CELL + GAP) + 4, 4), names.get(title, title), fill="black")
        for y, name in enumerate(rows):
            picture = Image.open(folder / f"{name}.png").resize((CELL, CELL), Image.Resampling.NEAREST)
            sheet.paste(picture, (SIDE + x * (CELL + GAP), HEAD + y * (CELL + GAP)))
    for y, name in enumerate(rows):
        label = name.split("_", 1)[1].replace("_", " ")
        draw.multiline_text((4, HEAD + y * (CELL + GAP) + CELL // 2), label, fill="black")
    sheet.save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
