"""The README's picture, of compress runs: what goes in, what comes out, at which cost.

    python -m scripts.demo_figure docs/demo.png RUN RUN ...    # compress runs of one task each, as of `make demo`

Every number is a run's own: PSNR to the full model's result is the mean over its evaluation, work is
multiply-accumulates.
"""

from __future__ import annotations

import csv
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from scripts.benchmarks import evaluations

CELL_PX, GAP_PX, SIDE_PX, TOP_PX, LINE_PX = 192, 10, 196, 62, 20
INK, GREY, OURS = "#1b1e23", "#5b626d", "#0b62b8"
# Task -> what it does, and the evaluated examples that are shown; the input is the kind of image that goes in.
SHOWN: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "ip2p": ("Edit by instruction", "image", ("0003_china_warmer", "0008_china_rotate_180")),
    "controlnet": ("Image from edges", "condition", ("0003_china",)),
    "stablesr": ("Super-resolution", "image", ("0004_grace_hopper",)),
    "inpaint": ("Inpainting", "image", ("0001_coffee",)),
}
HEADS = [
    ("Input", ""),
    ("Full model", ""),
    ("Ours, cut", "dB to the full model"),
    ("Ours, uncut", "at the same work"),
    ("Plain solver", "at the same work"),
]
OUR_COLUMNS = (2, 3)
SAMPLERS = {"ddim": "DDIM", "dpm_solver": "DPM-Solver++"}

Row = dict[str, Any]


def rows_of(run: Path) -> list[Row]:
    """What is shown of a run: by column the picture's file, its title and what it costs and keeps."""
    plans = [(file.parent, json.loads(file.read_text())) for file in evaluations(run)]
    folder, found = plans[-1]  # the fewest steps
    own, task = found["metrics"], found["task"]
    steps, many = own["num_inference_steps"]["compressed"], own["num_inference_steps"]["original"]
    share = steps * own["gmacs"]["compressed"] / (many * own["gmacs"]["original"])
    pictured = [one for one in found["alternatives"] if "images" in one]
    uncut = next(one for one in pictured if one.get("name") == "uncut")
    plain = max((one for one in pictured if "name" not in one), key=lambda one: one["metrics"]["psnr"]["value"])
    title, given, names = SHOWN[task]
    with (folder / "per_image.csv").open(encoding="utf-8", newline="") as file:
        prompts = {row["name"]: row["prompt"] for row in csv.DictReader(file)}

    def words(one: Row) -> str:
        return f"{share * one['gmacs_ratio']:.0%} of the work, {one['metrics']['psnr']['value']:.1f} dB"

    under = {
        given: "",
        "original": f"{many} steps, all of the work",
        "compressed": f"{share:.0%} of the work, {own['psnr']['compressed']:.1f} dB",
        uncut["images"]: words(uncut),
        plain["images"]: words(plain),
    }
    above = {
        "compressed": f"depth {found['recipe']['depth']}, {_steps(steps)}",
        uncut["images"]: f"fitted, {_steps(uncut['num_inference_steps'])}",
        plain["images"]: f"{SAMPLERS[plain['sampler']]}, {_steps(plain['num_inference_steps'])}",
    }
    return [
        {
            "title": title,
            "prompt": prompts[name],
            "pictures": [folder / "images" / kind / f"{name}.png" for kind in under],
            "under": list(under.values()),
            "further": [above.get(kind, "") for kind in under],
        }
        for name in names
    ]


def _steps(count: int) -> str:
    return f"{count} step{'s' if count > 1 else ''}"


def drawn(rows: Sequence[Row]) -> Image.Image:
    """The rows below the titles of their columns."""
    bold, plain, small = (ImageFont.load_default(size=size) for size in (18, 15, 14))
    step, height = CELL_PX + GAP_PX, CELL_PX + 2 * LINE_PX + 2 * GAP_PX
    sheet = Image.new("RGB", (SIDE_PX + len(HEADS) * step, TOP_PX + len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (head, under) in enumerate(HEADS):
        left = SIDE_PX + column * step
        draw.text((left, 8), head, fill=OURS if column in OUR_COLUMNS else INK, font=bold, stroke_width=0.4)
        draw.text((left, 34), under, fill=GREY, font=small)
    for number, row in enumerate(rows):
        top = TOP_PX + number * height
        title = "\n".join(textwrap.wrap(row["title"], 19))
        draw.multiline_text((8, top + 4), title, fill=INK, font=bold, spacing=5, stroke_width=0.3)
        if row["prompt"]:
            said = "\n".join(textwrap.wrap(f"“{row['prompt']}”", 24))
            draw.multiline_text((8, top + 18 + 23 * (title.count("\n") + 1)), said, fill=GREY, font=plain, spacing=5)
        for column, (file, under, further) in enumerate(
            zip(row["pictures"], row["under"], row["further"], strict=True)
        ):
            left, colour = SIDE_PX + column * step, OURS if column in OUR_COLUMNS else INK
            with Image.open(file) as picture:
                sheet.paste(picture.resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS), (left, top))
            if column in OUR_COLUMNS:
                edge = (left - 3, top - 3, left + CELL_PX + 2, top + CELL_PX + 2)
                draw.rectangle(edge, outline=OURS, width=3)
            draw.text((left, top + CELL_PX + 4), under, fill=colour, font=plain, stroke_width=0.3)
            draw.text((left, top + CELL_PX + 4 + LINE_PX), further, fill=GREY, font=small)
    return sheet


def main(target: Path, runs: Sequence[Path]) -> None:
    sheet = drawn([row for run in runs for row in rows_of(run)])
    sheet.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]])
