"""The report: complete, self-contained, the same in both formats, and honest about what is missing."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
import run_folders
from PIL import Image, ImageStat

from idcompress.errors import IdcError
from idcompress.report import figures, page
from idcompress.report.collect import Compression, collect, find_evaluation
from idcompress.report.tables import alternatives, images, instructions, samplers, summary, times
from idcompress.report.tables.table import MISSING, Table
from idcompress.report.tables.values import SPACE, quality_names

ADDRESSES = ("src", "href", "srcset", "action", "data", "poster", "background", "cite", "formaction")
FIGURES = ("psnr over work", "over depth", "PSNR over gamma", "timesteps drawn")


class Page(HTMLParser):
    """What an HTML page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.cells: list[str] = []
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {name: value or "" for name, value in attrs}
        self.addresses += [values[name] for name in ADDRESSES if name in values]
        if tag == "img":
            self.images.append(values)
            if self._open:
                self.cells[-1] += values["src"]
        if tag in ("td", "th"):
            self.cells.append("")
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.cells[-1] += data


@dataclass(frozen=True)
class Report:
    """What a report was made from, and both of its formats."""

    compression: Compression
    html: str
    markdown: str


def make(evaluation: Path) -> Report:
    compression = collect(evaluation, 4)
    blocks = page.compose(compression)
    return Report(compression, page.to_html(blocks), page.to_markdown(blocks))


@pytest.fixture(scope="module", params=["compress", "stage by stage"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """On an evaluation at 3 and 2 steps, in a compress run or by itself."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if request.param == "compress":
            return make(run_folders.compress_run(folder, [3, 2]) / "evaluate")
        return make(run_folders.stage_runs(folder, [3, 2]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def variance(uri: str) -> float:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        return max(ImageStat.Stat(image.convert("RGB")).var)


def test_page_is_self_contained(report: Report) -> None:
    text, markdown = report.html, report.markdown
    found = Page(text)
    assert len(found.images) >= 10
    assert all(variance(image["src"]) > 1 for image in found.images)
    assert all(image["alt"] for image in found.images)
    assert all(address.startswith("data:") for address in found.addresses)
    assert not {"script", "iframe", "object", "embed", "video"} & set(found.tags)
    assert "@import" not in text and "url(" not in text
    for written in (text, markdown):
        assert "://" not in written
    for name in FIGURES:
        assert any(name in image["alt"] for image in found.images), name


def test_the_page_opens_with_its_chart_and_pictures(report: Report) -> None:
    """After the result in a sentence; the first table with numbers comes behind the pictures."""
    blocks = page.compose(report.compression)
    kinds = [type(block).__name__ for block in blocks[:6]]
    assert kinds == ["Heading", "Text", "Picture", "Heading", "Table", "Heading"]
    assert isinstance(blocks[2], figures.Picture) and blocks[2].alt.startswith("psnr over work: compressed, ")
    assert isinstance(blocks[4], Table) and any(isinstance(cell, figures.Picture) for cell in blocks[4].rows[0])
    first = report.html.index("<img")
    assert report.html.index("over work") > first > report.html.index('class="lead"')
    assert first < report.html.index("<table") < report.html.index("Original against compressed</h2>")


def test_the_chart_needs_a_number(folder: Path) -> None:
    """Plain plans are points of it where they were run; without a metric there is none."""
    evaluation = run_folders.compress_run(folder, [3]) / "evaluate"
    before = page.compose(collect(evaluation, 2))[2]
    metrics = json.loads((evaluation / "metrics.json").read_text())
    row = {"model": "original", "sampler": "ddim", "num_inference_steps": 2, "gmacs_ratio": 4 / 3}
    metrics["alternatives"] = [{**row, "metrics": {n: {"value": 0.5} for n in ("psnr", "edit_success_rate")}}]
    run_folders.write_json(evaluation / "metrics.json", metrics)
    after = page.compose(collect(evaluation, 2))[2]
    assert isinstance(before, figures.Picture) and isinstance(after, figures.Picture)
    assert after.alt.endswith(", full model, ddim") and not before.alt.endswith("ddim")
    for name in ("psnr", "edit_success_rate"):
        metrics["metrics"][name]["compressed"] = None
    run_folders.write_json(evaluation / "metrics.json", metrics)
    assert not any("over work" in getattr(block, "alt", "") for block in page.compose(collect(evaluation, 2)))


def test_no_picture_names_an_address(report: Report) -> None:
    for image in Page(report.html).images:
        assert b"http" not in base64.b64decode(image["src"].partition(",")[2])


def test_markdown_has_the_same_tables_and_pictures(report: Report) -> None:
    found, markdown = Page(report.html), report.markdown
    pictures = re.findall(r'<img[^>]* src="([^"]+)"', markdown)
    assert pictures == [image["src"] for image in found.images]
    lines = [line for line in markdown.splitlines() if line.startswith("|") and not line.startswith("| :--")]
    assert found.tags.count("table") == markdown.count("\n| :--")

    def plain(cell: str) -> str:
        picture = re.search(r'src="([^"]+)"', cell)
        if picture:
            return picture[1]
        return html.unescape(re.sub(r"<br>|\*\*", "", cell)).replace("\\", "").strip()

    cells = [plain(cell) for line in lines for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    assert [cell for cell in cells if cell] == [cell.strip() for cell in found.cells if cell.strip()]


def test_grid_shows_the_chosen_examples_at_every_step_count(report: Report) -> None:
    grid = images.grid(report.compression)
    assert grid.header == [
        "prompt",
        "input",
        "true result",
        "original\n4 steps",
        "depth-skipped\n4 steps",
        "compressed\n3 steps",
        "uniform\n3 steps",
        "compressed\n2 steps",
        "uniform\n2 steps",
    ]
    # exactly those that evaluate sampled depth-skipped
    assert [row[0] for row in grid.rows] == ["make it grayscale\n0000_cat_grayscale", "flip it\n0002_cat_flip"]
    for row in grid.rows:
        pictures = [cell for cell in row[1:] if isinstance(cell, figures.Picture)]
        assert len(pictures) == 8 and len({picture.data for picture in pictures}) == 8
        assert all(picture.pixelated for picture in pictures)


def test_summary_gives_both_counting_rules_totals_and_intervals(report: Report) -> None:
    table = summary.table(report.compression)
    rows = {str(row[0]): [str(c).replace(SPACE, " ") for c in row[1:]] for row in table.rows}
    assert table.header[1:4] == ["original\n4 steps", "compressed\n3 steps", "uniform\n3 steps"]
    assert rows["parameters, in the files"][:2] == ["1,234,000", "617,000\n50 %"]
    assert rows["parameters, paper's rule: without time embedding"][:2] == ["1,200,000", "600,000\n50 %"]
    totals = [cells for label, cells in rows.items() if label.startswith("network calls")]
    assert [cells[0] for cells in totals] == ["8", "10"]
    assert [cells[3] for cells in totals] == ["2\n25 %", "2\n20 %"]
    latency = rows["latency end to end, as a ratio measured in one run"]
    assert latency[:3] == ["1", "0.25\nquartiles 0.24 to 0.26", "the same"]
    assert any("100 ms against 400 ms at 3 steps" in note for note in table.notes)
    assert rows["psnr ↑ (dB)"][:3] == ["exact", "28.75\n[22.50, 35.00]", "27.25"]
    assert rows["edit_success_rate ↑"][:3] == ["100 %", "75 %\n[25 %, 100 %]", "25 %"]
    assert any("perfect by definition" in note for note in table.notes)


def test_result_is_one_sentence(report: Report) -> None:
    sentence = summary.sentence(report.compression).replace(SPACE, " ")
    assert sentence == (
        "The compressed model (depth 11 of 13) keeps 50 % of the parameters; at 3 steps instead of 4 it takes 37.5 % "
        "of the multiply-accumulates and 25 % of the time per image, with psnr 28.75 dB (uniform steps: 27.25 dB); "
        "at 2 steps 25 % and 25 %, with psnr 28.75 dB (uniform steps: 27.25 dB)."
    )


def test_instructions_and_worst_images(report: Report) -> None:
    table = instructions.table(report.compression)
    assert table is not None
    cells = {str(row[0]): [str(c).replace(SPACE, " ") for c in row[1:]] for row in table.rows}
    assert cells["all easy"][:4] == ["3", "100 %\n3 of 3", "67 %\n2 of 3", "33 %\n1 of 3"]
    assert cells["easy: sepia"][:4] == ["2", "2 of 2", "1 of 2", "1 of 2"]
    assert cells["hard: flip"][:4] == ["1", "1 of 1", "1 of 1", "0 of 1"]
    worst = images.worst(report.compression.evaluations[0])
    assert worst is not None
    assert [row[0] for row in worst.rows] == [run_folders.EXAMPLES[place][0] for place in (1, 3, 0, 2)]
    assert worst.rows[0][2:4] == ["20.00", "21.00"]


def test_a_flat_pictures_score_stands_beside_the_models(folder: Path) -> None:
    evaluation = run_folders.compress_run(folder, [3]) / "evaluate"
    metrics = json.loads((evaluation / "metrics.json").read_text())
    rate = metrics["metrics"]["edit_success_rate"]
    flat = dict.fromkeys(("original", "compressed", "uniform"), 0.75)
    metrics["metrics"]["edit_success_rate_mean_colour"] = {**rate, **flat, "higher_is_better": False}
    run_folders.write_json(evaluation / "metrics.json", metrics)
    lines = (evaluation / "per_image.csv").read_text().splitlines()
    lines[0] += ",edit_success_rate_mean_colour.original"
    lines[1:] = [f"{line},{float(number > 0)}" for number, line in enumerate(lines[1:])]
    run_folders.write(evaluation / "per_image.csv", "\n".join(lines) + "\n")
    compression = collect(evaluation, 2)
    table = instructions.table(compression)
    assert table is not None
    assert table.header[-1] == "mean colour\nof the input"
    assert [str(row[-1]) for row in table.rows if str(row[0]) == "hard: flip"] == ["1 of 1"]
    whole = summary.table(compression)
    rows = {str(row[0]): [str(c).replace(SPACE, " ") for c in row[1:]] for row in whole.rows}
    assert rows["edit_success_rate_mean_colour ↓"][0] == "75 %"
    notes = [note for note in whole.notes if "shows no skill" in note]
    assert len(notes) == 1 and notes[0].startswith("edit_success_rate, compressed at 3 steps")


def test_plain_alternatives_and_no_gain_are_said(folder: Path) -> None:
    evaluation = run_folders.compress_run(folder, [3]) / "evaluate"
    assert alternatives.table(collect(evaluation, 2)) is None
    metrics = json.loads((evaluation / "metrics.json").read_text())
    difference = {"mean": 1.5, "interval": [0.5, 2.5], "num_images": 4, "verdict": "better"}
    row = {"model": "original", "sampler": "ddim", "num_inference_steps": 2, "gmacs_ratio": 4 / 3}
    metrics["alternatives"] = [
        {**row, "metrics": {"psnr": {"value": 27.25, "compressed_minus_this": difference}}},
    ]
    metrics["alternatives"][0]["metrics"]["edit_success_rate"] = {"value": 0.75}
    run_folders.write_json(evaluation / "metrics.json", metrics)
    compression = collect(evaluation, 2)
    assert (
        alternatives.sentence(compression) == "Plain plans of the same cost that the compressed one beats: psnr 1 of 1."
    )
    table = alternatives.table(compression)
    assert table is not None
    cells = [[str(c).replace(SPACE, " ") for c in line] for line in table.rows]
    assert cells[1] == ["compressed", "3", "100 %", "28.75"]
    assert cells[2] == ["full model, uniform steps\nDDIM", "2", "133 %", "27.25\nbetter: 1.50 [0.50, 2.50]"]
    difference |= {"interval": [-0.5, 2.5], "verdict": "no gain"}
    run_folders.write_json(evaluation / "metrics.json", metrics)
    sentence = alternatives.sentence(collect(evaluation, 2))
    assert sentence.endswith("beats: psnr 0 of 1, no gain.")


def test_no_gain_over_uniform_is_said(folder: Path) -> None:
    evaluation = run_folders.compress_run(folder, [3]) / "evaluate"
    metrics = json.loads((evaluation / "metrics.json").read_text())
    for verdict, interval, words in (
        ("better", [0.5, 2.5], "27.25 dB)."),
        ("no gain", [-0.5, 2.5], "27.25 dB, no gain)."),
        ("worse", [-2.5, -0.5], "27.25 dB, which is better)."),
    ):
        row = {"mean": 1.5, "interval": interval, "num_images": 4, "verdict": verdict}
        metrics["metrics"]["psnr"]["compressed_minus_uniform"] = row
        run_folders.write_json(evaluation / "metrics.json", metrics)
        compression = collect(evaluation, 2)
        assert summary.sentence(compression).replace(SPACE, " ").endswith(words)
        cells = {str(line[0]): line[1:] for line in summary.table(compression).rows}["psnr ↑ (dB)"]
        assert cells[2] == f"27.25\ncompressed {verdict}: 1.50 [{interval[0]:.2f}, {interval[1]:.2f}]"


def test_narrow_networks_show_ratios_calls_and_bytes_and_no_milliseconds(folder: Path) -> None:
    evaluation = run_folders.compress_run(folder, [3]) / "evaluate"
    metrics = json.loads((evaluation / "metrics.json").read_text())
    rows = metrics["metrics"]
    rows["latency_ms"] |= dict.fromkeys(run_folders.SYSTEMS) | {"denoising_ratio": 0.2}
    parts = {"encode": 0.1, "denoise": 0.8, "decode": 0.05, "other": 0.05}
    rows["latency_ms"]["stages"] = {"original": parts, "compressed": {**parts, "denoise": 0.05}}
    rows["network_calls"] = rows["num_inference_steps"] | {"original": 8, "compressed": 6, "uniform": 6}
    rows["weights_mb"] = rows["params"] | {"original": 4.0, "compressed": 2.0, "uniform": 2.0}
    run_folders.write_json(evaluation / "metrics.json", metrics)
    table = summary.table(collect(evaluation, 2))
    cells = {str(line[0]): [str(c).replace(SPACE, " ") for c in line[1:]] for line in table.rows}
    assert cells["of it denoising alone, as a ratio"] == ["1", "0.2", "the same"]
    assert cells["calls of the networks per image, one for each guidance branch"][1] == "6\n75 %"
    assert cells["weights of the networks (MB)"][:2] == ["4", "2\n50 %"]
    totals = [line for label, line in cells.items() if label.startswith("network calls")]
    assert [line[0] for line in totals] == ["16", "20"]  # eight calls
    notes = " ".join(table.notes).replace(SPACE, " ")
    assert "compressed at 3 steps encode 10 %, denoise 5 %, decode 5 %, other 5 %" in notes
    assert "no milliseconds are told" in notes
    assert not re.search(r"\d ms\b", notes)


def test_times_of_every_run_sum_to_its_wall_time(folder: Path) -> None:
    evaluation = run_folders.compress_run(folder, [3]) / "evaluate"
    assert times.table(collect(evaluation, 2)) is None
    search = {"load": 2.0, "denoise": 5.0, "other": 0.5}
    run_folders.write_json(evaluation.parent / "depth_search/timing.json", {"seconds": search})
    seconds = {"load": 1.0, "original": 0.25, "original/denoise": 8.0, "compressed/denoise": 2.0, "costs": 3.0}
    run_folders.write_json(evaluation / "timing.json", {"seconds": {**seconds, "other": 0.75}})
    table = times.table(collect(evaluation, 2))
    assert table is not None
    assert table.header == ["", "load", "encode", "denoise", "decode", "measure", "train", "rest", "sum"]
    assert table.rows == [
        ["idc depth-search", "2.0", "", "5.0", "", "", "", "0.5", "7.5"],
        ["idc evaluate", "1.0", "", "", "", "", "", "0.8", "1.8"],
        ["idc evaluate: compressed", "", "", "2.0", "", "", "", "", "2.0"],
        ["idc evaluate: costs", "", "", "", "", "", "", "3.0", "3.0"],
        ["idc evaluate: original", "", "", "8.0", "", "", "", "0.2", "8.2"],
        ["idc evaluate, all of it", *[""] * 7, "15.0"],
    ]


def test_samplers_stand_side_by_side(folder: Path) -> None:
    evaluation = run_folders.compress_run(folder, [3]) / "evaluate"
    assert samplers.table(collect(evaluation, 2)) is None
    metrics = json.loads((evaluation / "metrics.json").read_text())
    names = quality_names(collect(evaluation, 2).evaluations[0])
    metrics["samplers"] = {
        sampler: {name: {"original": None, "compressed": value} for name in names}
        for sampler, value in (("ddim", 28.75), ("ancestral", 0.5))
    }
    run_folders.write_json(evaluation / "metrics.json", metrics)
    table = samplers.table(collect(evaluation, 2))
    assert table is not None
    steps = collect(evaluation, 2).evaluations[0].original_steps
    assert [row[0] for row in table.rows if len(row) == 1] == [f"original, {steps} steps", "compressed, 3 steps"]
    cells = [row[: 1 + names.index("psnr") + 1] for row in table.rows if len(row) > 1]
    assert [(row[0], row[-1]) for row in cells] == [
        ("DDIM", MISSING),
        ("ancestral (DDIM with eta 1)", MISSING),
        ("DDIM", "28.75"),
        ("ancestral (DDIM with eta 1)", "0.50"),
    ]


def test_worst_follows_the_direction_of_the_metric(folder: Path) -> None:
    evaluation = run_folders.compress_run(folder, [3]) / "evaluate"
    metrics = json.loads((evaluation / "metrics.json").read_text())
    metrics["metrics"]["psnr"]["higher_is_better"] = False
    run_folders.write_json(evaluation / "metrics.json", metrics)
    worst = images.worst(collect(evaluation, 4).evaluations[0])
    assert worst is not None and worst.rows[0][2] == "40.00"


def test_provenance_and_warnings_are_told(report: Report) -> None:
    for text in (
        "idc depth-search | ",
        run_folders.DEPTH_DIGEST[:12],
        run_folders.TSOPT_DIGEST[:12],
        "rocket_sepia",
        "torch 2.15.0",
        "cpu count 2",
        "guidance_scale=9.0, but the recipe differs",
        "arXiv:2401.17547",
        "arXiv:2211.09800",
        "arXiv:2010.02502",
    ):
        assert text in report.markdown, text
    assert "2211.01095" not in report.markdown  # DPM-Solver++ was not used


def test_markup_in_prompts_stays_text(report: Report) -> None:
    text, markdown = report.html, report.markdown
    assert "make it &lt;b&gt;sepia&lt;/b&gt; | *now*" in text
    assert "make it &lt;b&gt;sepia&lt;/b&gt; \\| \\*now\\*" in markdown
    assert "b" not in Page(text).tags


def test_single_step_count(folder: Path) -> None:
    text = make(run_folders.compress_run(folder, [3], latency=False) / "evaluate").html
    assert len(Page(text).images) >= 10
    assert "Latency was not measured" in text and "2 steps" not in text


def test_missing_parts_are_said_not_drawn(folder: Path) -> None:
    evaluation = run_folders.stage_runs(folder, [3], stages=("depth_search",))
    (folder / "outputs/ip2p/tiny/depth_search/2026-01-01_00-00-00/trace.jsonl").unlink()
    (folder / "outputs/ip2p/tiny/depth_search/2026-01-01_00-00-00/metrics.json").unlink()
    made = make(evaluation)
    text = made.html
    for written in (text, made.markdown):
        assert "The depth was given (11), not searched" in written
        assert "No timestep search was run" in written
    assert not any(name in image["alt"] for image in Page(text).images for name in FIGURES[1:3])
    assert "both columns show the same images" in text


def test_runs_that_are_gone_are_said(folder: Path) -> None:
    evaluation = run_folders.stage_runs(folder, [3])
    for stage in ("depth_search", "tsopt"):
        (next((folder / "outputs/ip2p/tiny" / stage).iterdir()) / "run.json").unlink()
    text = make(evaluation).html
    assert text.count("no longer there") == 2
    assert "not on record" in text
    assert not any(name in image["alt"] for image in Page(text).images for name in FIGURES[1:3])


def test_unprobed_depths_are_said(report: Report) -> None:
    assert "Only depths 13 to 10 were probed; depth_search.whole_curve=true" in report.html


def test_examples_without_depth_skipped_images_are_the_first_ones(folder: Path) -> None:
    evaluation = run_folders.compress_run(folder, [3]) / "evaluate"
    for path in (evaluation / "images/depth_skipped").iterdir():
        path.unlink()
    compression = collect(evaluation, 3)
    assert compression.examples == [example[0] for example in run_folders.EXAMPLES[:3]]
    assert not any("depth-skipped" in label for label in images.grid(compression).header)


def test_large_images_are_reduced(folder: Path) -> None:
    evaluation = run_folders.compress_run(folder, [3], size_px=400) / "evaluate"
    picture = images.grid(collect(evaluation, 4)).rows[0][1]
    assert isinstance(picture, figures.Picture) and not picture.pixelated
    with Image.open(io.BytesIO(picture.data)) as image:
        assert max(image.size) == 320


def test_depth_curve_draws_threshold_and_choice(report: Report) -> None:
    search = report.compression.stage("depth_search")
    assert search is not None
    drawn = figures.depth_curve(search, {}).data
    for changes in ({"depth": 12}, {"thresholds": [{"metric": "psnr", "bound": 35.0, "direction": ">="}]}):
        other = figures.Stage(search.entry, search.folder, search.metrics | changes, search.trace)
        assert figures.depth_curve(other, {}).data != drawn
    assert figures.depth_curve(search, {}).data == drawn


def test_newest_finished_evaluation_is_found(folder: Path) -> None:
    stagewise = run_folders.stage_runs(folder, [3])
    inside = run_folders.compress_run(folder, [3], finished_seconds=9.0) / "evaluate"
    assert find_evaluation(None, "ip2p", "tiny").resolve() == inside
    run_folders.run_json(inside, "evaluate", "f" * 64, finished=False)
    assert find_evaluation(None, "ip2p", "tiny").resolve() == stagewise
    assert find_evaluation(str(inside.parent), "ip2p", "tiny") == inside
    with pytest.raises(IdcError, match=r"report\.path=outputs holds no evaluation"):
        find_evaluation("outputs", "ip2p", "tiny")


def idc(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "idcompress.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_command_line(folder: Path) -> None:
    nothing = idc("report", "task=ip2p", folder=folder)
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("idc: error: no finished evaluation under outputs/ip2p/tiny")
    assert nothing.stderr.count("\n") == 1 and "idc evaluate task=ip2p" in nothing.stderr
    assert not list(folder.iterdir())  # no unfinished run

    top = run_folders.compress_run(folder, [3, 2])
    done = idc("report", f"report.path={top}", "output.path=public", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "report: public/report.html" in done.stdout
    assert len(Page((folder / "public/report.html").read_text(encoding="utf-8")).images) >= 10
    assert (folder / "public/report.md").is_file()


def test_no_torch(folder: Path) -> None:
    evaluation = run_folders.compress_run(folder, [3]) / "evaluate"
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import idcompress.stages.report\n"
        "from idcompress.report import page\n"
        "from idcompress.report.collect import collect\n"
        "page.to_html(page.compose(collect(Path(sys.argv[1]), 2)))\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", code, str(evaluation)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_folders_without_structured_fields_are_shown_without_guessing(folder: Path) -> None:
    """Neither the words of a note nor a gamma of 1 stand for what an earlier version did not record."""
    top = run_folders.compress_run(folder, [3])
    for path, forget in (
        (top / "evaluate/metrics.json", lambda found: found["metrics"]["psnr"].pop("perfect")),
        (top / "tsopt/metrics.json", lambda found: found["searches"][0].pop("uniform_timesteps")),
    ):
        found = json.loads(path.read_text())
        forget(found)
        run_folders.write_json(path, found)
    report = make(top / "evaluate")
    table = summary.table(report.compression)
    assert {str(row[0]): row[1:] for row in table.rows}["psnr ↑ (dB)"][0] == MISSING
    assert any("every image equals its reference exactly" in note for note in table.notes)
    assert not any("perfect by definition" in note for note in table.notes)
    assert report.compression.uniform_timesteps(3) is None
    assert not report.compression.is_uniform(report.compression.evaluations[0])
    assert f"| 3 steps, uniform | {MISSING} |" in report.markdown


def test_only_what_is_said_to_be_perfect_is_exact(folder: Path) -> None:
    evaluation = run_folders.compress_run(folder, [3]) / "evaluate"
    found = json.loads((evaluation / "metrics.json").read_text())
    note = "every image equals its reference exactly"
    found["metrics"]["psnr"] |= {"uniform": None, "perfect": ["uniform"], "notes": {"original": note, "uniform": note}}
    run_folders.write_json(evaluation / "metrics.json", found)
    table = summary.table(collect(evaluation, 2))
    cells = {str(row[0]): row[1:] for row in table.rows}["psnr ↑ (dB)"]
    assert (cells[0], cells[2]) == (MISSING, "exact")
    assert [note.partition(",")[2][:9] for note in table.notes if "perfect by definition" in note] == [" uniform "]


def test_the_uniform_list_of_any_strategy_is_found(folder: Path) -> None:
    top = run_folders.compress_run(folder, [3])
    rows = [json.loads(line) for line in (top / "tsopt/trace.jsonl").read_text().splitlines()]
    for row in rows:
        del row["gamma"]
    run_folders.write(top / "tsopt/trace.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert collect(top / "evaluate", 2).uniform_timesteps(3) == run_folders.UNIFORM[3]


def test_the_same_chart_has_the_same_bytes():
    """Drawings name their parts; random names would make two equal runs differ."""
    from idcompress.report.figures import charts
    from idcompress.types import Chart, Series

    chart = Chart("steps", "psnr (dB)", [Series("uniform", [(5.0, 20.0), (10.0, 25.0)])])
    (first, drawing), (second, again) = charts([chart], "alt"), charts([chart], "alt")
    assert first.data == second.data and drawing == again
