"""Run folders as the stages leave them, small and made up."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

SYSTEMS = ("original", "compressed", "uniform")
EXAMPLES = [
    ("0000_cat_grayscale", "make it grayscale", "easy grayscale"),
    ("0001_dog_sepia", "make it <b>sepia</b> | *now*", "easy sepia"),
    ("0002_cat_flip", "flip it", "hard flip"),
    ("0003_dog_sepia", "make it sepia", "easy sepia"),
]
PSNR = {"compressed": [30.0, 20.0, 40.0, 25.0], "uniform": [29.0, 21.0, 35.0, 24.0]}
SUCCESS = {"original": [1, 1, 1, 1], "compressed": [1, 0, 1, 1], "uniform": [0, 0, 0, 1]}
UNIFORM = {3: [999, 499, 0], 2: [999, 0]}
SEARCHED = {3: [999, 663, 90], 2: [999, 655]}
DEPTH_DIGEST, TSOPT_DIGEST = "d" * 64, "e" * 64
CONFIG = "seed: 5\nsampler: ddim\ndevice: auto\ndtype: float32\ndata:\n  path: null\n  split: auto\n"
ENVIRONMENT = {"python": "3.11.7", "platform": "Linux", "cpu_count": 2, "packages": {"torch": "2.15.0"}}


def compress_run(root: Path, steps: list[int], **options: Any) -> Path:
    """outputs/ip2p/tiny/compress/<time> with its stages; returns the folder."""
    top = root / "outputs/ip2p/tiny/compress/2026-01-01_00-00-00"
    run_json(top, "compress", "c" * 64)
    common_files(top)
    depth_search(top / "depth_search")
    tsopt(top / "tsopt", steps)
    evaluate(top / "evaluate", steps, **options)
    return top


def stage_runs(root: Path, steps: list[int], **options: Any) -> Path:
    """The same by hand, a folder per stage; returns the evaluation's."""
    top = root / "outputs/ip2p/tiny"
    depth_search(top / "depth_search/2026-01-01_00-00-00")
    tsopt(top / "tsopt/2026-01-01_00-01-00", steps)
    folder = top / "evaluate/2026-01-01_00-02-00"
    evaluate(folder, steps, **options)
    common_files(folder)
    return folder


def common_files(folder: Path) -> None:
    write(folder / "config.yaml", CONFIG)
    write_json(folder / "environment.json", ENVIRONMENT)
    write(folder / "log.txt", "2026-01-01 00:00:00,000 WARNING warning: guidance_scale=9.0, but the recipe differs\n")


def run_json(folder: Path, stage: str, digest: str, *, finished: bool = True, finished_seconds: float = 1.0) -> None:
    info = {"stage": stage, "task": "ip2p", "model": "tiny", "digest": digest, "finished": finished}
    write_json(folder / "run.json", info | {"finished_seconds": finished_seconds})


def depth_search(folder: Path) -> None:
    run_json(folder, "depth_search", DEPTH_DIGEST)
    rows: list[dict[str, Any]] = []
    for depth, psnr, params in ((13, None, 1000), (12, 45.0, 800), (11, 38.0, 600), (10, 29.0, 500)):
        notes = {"psnr": "every image equals its reference exactly"} if psnr is None else {}
        perfect = {"perfect": ["psnr"]} if psnr is None else {}
        passed = psnr is None or psnr >= 30
        row = {"depth": depth, "passed": passed, "metrics": {"psnr": psnr}, **perfect, "notes": notes, "params": params}
        rows.append(row)
    write(folder / "trace.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    metrics = {
        "version": 1,
        "stage": "depth_search",
        "depth": 11,
        "full_depth": 13,
        "num_images": 2,
        "thresholds": [{"metric": "psnr", "bound": 30.0, "direction": ">="}],
        "probed": [13, 12, 11, 10],
        "metrics": {"psnr": 38.0},
        "params": 600,
        "params_full": 1000,
    }
    write_json(folder / "metrics.json", metrics)


def tsopt(folder: Path, steps: list[int]) -> None:
    run_json(folder, "tsopt", TSOPT_DIGEST)
    rows, searches = [], []
    for count in steps:
        for gamma, psnr, timesteps in (
            (1.0, 30.0, UNIFORM[count]),
            (1.2, 28.0, [991, *UNIFORM[count][1:]]),
            (0.5, 36.0, SEARCHED[count]),
            (0.4, 33.0, [999] * count),
        ):
            rows.append({"num_inference_steps": count, "gamma": gamma, "timesteps": timesteps, "psnr": psnr})
        found = {"num_inference_steps": count, "timesteps": SEARCHED[count], "psnr": 36.0, "psnr_uniform": 30.0}
        searches.append(found | {"uniform_timesteps": UNIFORM[count], "gamma": 0.5})
    write(folder / "trace.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    metrics = {"version": 1, "stage": "tsopt", "num_images": 2, "reference": "self", "reference_steps": 4}
    write_json(folder / "metrics.json", metrics | {"searches": searches})


def evaluate(
    folder: Path,
    steps: list[int],
    *,
    stages: tuple[str, ...] = ("depth_search", "tsopt"),
    size_px: int = 24,
    latency: bool = True,
    finished_seconds: float = 2.0,
) -> None:
    """An evaluation of one recipe, or of one per step count.

    Args:
        stages: that made the recipe; without tsopt its timesteps are uniform.
        size_px: of the images.
    """
    run_json(folder, "evaluate", "f" * 64, finished_seconds=finished_seconds)
    for count in steps:
        part = folder if len(steps) == 1 else folder / f"steps_{count}"
        _evaluate(part, count, stages, size_px, latency)


def _evaluate(folder: Path, count: int, stages: tuple[str, ...], size_px: int, latency: bool) -> None:
    timesteps = SEARCHED[count] if "tsopt" in stages else UNIFORM[count]
    entry = {"seed": 5, "code": "0.1.0", "photographs": {"rocket_sepia": "1" * 64}}
    provenance = {
        "depth_search": entry | {"stage": "depth_search", "config_digest": DEPTH_DIGEST, "depth": 11},
        "tsopt": entry | {"stage": "tsopt", "config_digest": TSOPT_DIGEST, "strategy": "gamma", "gamma": 0.5},
    }
    recipe = {
        "version": 1,
        "task": "ip2p",
        "model": {"name": "tiny", "path": None, "repositories": None, "revision": None, "digest": "a" * 64},
        "prune": "depth_skip",
        "depth": 11,
        "timesteps": timesteps if "tsopt" in stages else None,
        "num_inference_steps": count,
        "guidance": {"guidance_scale": 4.0},
        "weights": {},
        "parent": None,
        "provenance": [provenance[stage] for stage in stages],
    }
    write_json(folder / "evaluated_recipe.json", recipe)

    def cost(original: float, compressed: float) -> dict[str, Any]:
        values = {"original": original, "compressed": compressed, "uniform": compressed, "ratio": compressed / original}
        return values | {"unit": "", "higher_is_better": False, "interval": None}

    metrics: dict[str, Any] = {
        "psnr": {
            "original": None,
            "compressed": 28.75,
            "uniform": 27.25,
            "unit": "dB",
            "higher_is_better": True,
            "interval": [22.5, 35.0],
            "perfect": ["original"],
            "notes": {"original": "every image equals its reference exactly"},
        },
        "edit_success_rate": {
            "original": 1.0,
            "compressed": 0.75,
            "uniform": 0.25,
            "unit": "",
            "higher_is_better": True,
            "interval": [0.25, 1.0],
        },
        "params": cost(1_234_000, 617_000),
        "params_paper": cost(1_200_000, 600_000),
        "gmacs": cost(2.0, 1.0),
        "gmacs_with_attention": cost(2.5, 1.0),
        "num_inference_steps": cost(4, count),
    }
    if latency:
        row = cost(400.0, 100.0) | {"unit": "ms per image, denoising and decoding"}
        metrics["latency_ms"] = row | {"ratio_quartiles": [0.24, 0.26]}
    value = {
        "version": 1,
        "task": "ip2p",
        "model": "tiny",
        "data": "made up",
        "num_images": len(EXAMPLES),
        "recipe": {"file": "evaluated_recipe.json", "digest": "b" * 64, "depth": 11, "timesteps": timesteps},
        "guidance": {"guidance_scale": 4.0},
        "metrics": metrics,
    }
    write_json(folder / "metrics.json", value)
    columns = [f"{name}.{system}" for name in ("psnr", "edit_success_rate") for system in SYSTEMS]
    lines = [",".join(["index", "name", "prompt", "tags", *columns])]
    for index, (name, prompt, tags) in enumerate(EXAMPLES):
        psnr = ["", *(str(PSNR[system][index]) for system in SYSTEMS[1:])]
        success = [str(float(SUCCESS[system][index])) for system in SYSTEMS]
        lines.append(",".join([str(index), name, prompt, tags, *psnr, *success]))
    write(folder / "per_image.csv", "\n".join(lines) + "\n")
    for name, _, _ in EXAMPLES:
        for kind in ("image", "target", *SYSTEMS):
            noise_png(folder / "images" / kind / f"{name}.png", size_px, f"{name} {kind} {count}")
    for name, _, _ in EXAMPLES[::2]:
        noise_png(folder / "images" / "depth_skipped" / f"{name}.png", size_px, f"{name} skipped")


def noise_png(path: Path, size_px: int, seed: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = random.Random(seed).randbytes(size_px * size_px * 3)
    Image.frombytes("RGB", (size_px, size_px), data).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write(path, json.dumps(value))
