"""The page's section on fine-tuning: before and after in numbers, a curve, pictures, and what was kept."""

import io
import json

import pytest
import run_folders
from PIL import Image

from idcompress.report import finetuning, page
from idcompress.report.collect import collect
from idcompress.report.figures import Picture

DIGEST = "9" * 64


def tuned_run(root, kept, missed):
    """A compress run whose search keeps depth 11 and whose fine-tuning tried depth 10."""
    top = run_folders.compress_run(root, [3])
    folder = top / "finetune"
    run_folders.run_json(folder, "finetune", DIGEST)
    trace = [{"step": step, "metrics": {"psnr": psnr}} for step, psnr in ((0, 29.5), (50, 36.25), (100, 35.0))]
    run_folders.write(folder / "trace.jsonl", "".join(json.dumps(row) + "\n" for row in trace))
    judged = {"num_images": 2, "thresholds": [], "metrics": {"psnr": 34.5}, "missed": missed}
    metrics = {"depth": 10, "kept_step": kept, "num_images": 4, "judged": judged}
    run_folders.write_json(folder / "metrics.json", metrics | {"before": trace[0]["metrics"]})
    for step in (0, 50, 100):
        run_folders.noise_png(folder / "previews" / f"step_{step:06d}.png", 24, f"grid {step}")
    entry = {"stage": "finetune", "config_digest": DIGEST, "photographs": {}, "steps": 100, "batch_size": 16}
    entry |= {"loss": "distill", "data": {"name": "photographs", "photographs": 4}, "kept_step": kept}
    recipe = json.loads((top / "evaluate/evaluated_recipe.json").read_text())
    recipe["provenance"].insert(1, entry)
    run_folders.write_json(top / "evaluate/evaluated_recipe.json", recipe)
    return top


@pytest.mark.parametrize(
    ("kept", "missed", "words", "step"),
    [
        (50, [], "The weights of update 50 are kept. All thresholds hold again.", 50),
        (None, ["psnr is 34.5, want >= 36"], "A threshold is missed even so (psnr is 34.5, want >= 36)", 100),
        (0, [], "No validation was better than the start", 100),
    ],
)
def test_before_and_after(tmp_path, monkeypatch, kept, missed, words, step):
    monkeypatch.chdir(tmp_path)
    compression = collect(tuned_run(tmp_path, kept, missed) / "evaluate", 4)
    blocks = page.compose(compression)
    headings = [block.text for block in blocks if isinstance(block, page.Heading)]
    assert headings.index("Fine-tuning") == headings.index("Depth") + 1
    part = blocks[next(i for i, block in enumerate(blocks) if block == page.Heading("Fine-tuning")) :]
    assert words in part[1].text
    table = part[2]
    assert table.header == ["depth 10", "before", f"after {step} updates"]
    assert table.rows[0] == ["psnr, 2 images of the depth search", "29 dB", "34.5 dB"]
    assert table.rows[1] == ["psnr, 4 validation images", "29.5 dB", {50: "36.25 dB", 100: "35 dB"}[step]]
    curve, grid = part[3:5]
    assert "over 100 updates of fine-tuning" in curve.alt
    assert grid.data == (compression.stage("finetune").folder / f"previews/step_{step:06d}.png").read_bytes()
    depth = next(block for block in blocks if isinstance(block, Picture) and "over depth" in block.alt)
    assert "a star at depth 10 after fine-tuning" in depth.alt
    for text in (page.to_html(blocks), page.to_markdown(blocks)):
        assert "34.5 dB" in text


@pytest.mark.parametrize(("perfect", "shown"), [(["psnr"], "exact"), ([], "-")])
def test_a_missing_value_is_exact_only_where_the_run_says_so(tmp_path, monkeypatch, perfect, shown):
    monkeypatch.chdir(tmp_path)
    top = tuned_run(tmp_path, 50, [])
    nothing = {"metrics": {"psnr": None}, "perfect": perfect}
    trace = [nothing | {"step": 0}, nothing | {"step": 50}]
    run_folders.write(top / "finetune/trace.jsonl", "".join(json.dumps(row) + "\n" for row in trace))
    metrics = json.loads((top / "finetune/metrics.json").read_text())
    metrics["judged"] |= nothing
    run_folders.write_json(top / "finetune/metrics.json", metrics)
    blocks = page.compose(collect(top / "evaluate", 4))
    table = blocks[blocks.index(page.Heading("Fine-tuning")) + 2]
    assert [row[1:] for row in table.rows] == [["29 dB", shown], [shown, shown]]


def test_a_run_that_is_gone_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    top = tuned_run(tmp_path, 50, [])
    (top / "finetune/run.json").unlink()
    blocks = page.compose(collect(top / "evaluate", 4))
    place = next(i for i, block in enumerate(blocks) if block == page.Heading("Fine-tuning"))
    assert "idc finetune" in blocks[place + 1].text
    assert "no longer there" in blocks[place + 1].text


def test_a_grid_has_captions_and_enlarges_small_images():
    colours = {"input": "red", "full model": "green", "before": "blue", "step 50": "yellow"}
    data = finetuning.preview_grid({name: [Image.new("RGB", (32, 32), c)] * 3 for name, c in colours.items()})
    with Image.open(io.BytesIO(data)) as grid:
        assert grid.size == (4 * 164 - 4, 22 + 3 * 164 - 4)
        strip = grid.crop((0, 0, grid.width, 22))
        assert strip.convert("L").getextrema()[0] < 128  # something is written there
        for column, colour in enumerate(colours.values()):
            pixel = grid.getpixel((column * 164 + 80, 22 + 164 + 80))
            assert pixel == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
