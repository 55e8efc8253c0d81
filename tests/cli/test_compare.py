"""`idc compare` on a small random model: its rows, its files, finished runs, and what it refuses."""

import csv
import json
import re
from pathlib import Path

import pytest


@pytest.fixture
def common(random_model):
    # Rows of the default comparison would stay beside those given: none of its own are merged in.
    dropped = [f"compare.rows.{name}=null" for name in ("trailing", "dpm_solver", "unipc", "paper", "best")]
    return (
        "task=ip2p",
        f"model.path={random_model('ip2p')}",
        "recipe=none",
        "num_inference_steps=4",
        "compare.num_inference_steps=[2,3]",
        "compare.num_searched=2",
        "compare.num_evaluated=2",
        "compare.num_images=1",
        "compare.metrics=[psnr]",
        "evaluate.latency=false",
        *dropped,
    )


def test_rows_have_quality_cost_and_the_work_of_their_search(idc, common):
    result = idc("compare", *common, "+compare.rows.half={cut: {name: depth_skip, depth: 1}}")
    assert result.code == 0, result.err
    (written,) = Path("outputs").rglob("compare.json")
    value, folder = json.loads(written.read_text()), written.parent
    names = [row["name"] for row in value["rows"]]
    assert value["version"] == 1 and value["task"] == "ip2p" and value["compare"] == "equal_cost"
    assert [row["label"] for row in value["rows"][:1]] == ["full model, uniform steps"]
    assert len(names) == len(set(names)) == 8  # uniform, gamma, fitted and half, at two costs
    for row in value["rows"]:
        assert set(row["metrics"]) == {"psnr"}
        assert row["params"] > 0 and row["bytes"] > 0 and row["num_inference_steps"] == len(row["timesteps"])
        assert row["macs_ratio"] == pytest.approx(row["num_inference_steps"] / 4, rel=1e-9) or row["cut"]
    two = [row for row in value["rows"] if row["block"] == "the work of 2 full steps"]
    uniform, gamma, fitted, half = two
    assert uniform["search"] is None and half["search"] is None
    # The reference's 4 steps on 2 images; fitting samples both, too.
    assert fitted["search"]["step_images"] >= 8 + 2 * 2
    assert gamma["search"]["step_images"] > fitted["search"]["step_images"]
    assert gamma["search"]["network_calls"] == 2 * gamma["search"]["step_images"]  # without image guidance
    assert half["params"] < uniform["params"] and half["num_inference_steps"] >= 2
    assert "minus_first" not in uniform["metrics"]["psnr"]
    assert half["metrics"]["psnr"]["minus_first"]["num_images"] == 2
    assert {path.name for path in folder.iterdir()} >= {
        *("compare.json", "compare.csv", "compare.png", "compare.svg", "report.html", "report.md", "trace.jsonl"),
    }
    assert len(list((folder / "images" / "reference").glob("*.png"))) == 1
    with (folder / "compare.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    everything = [line for line in lines if line["images"] == "all images"]
    assert [line["method"] for line in everything] == names
    assert [float(line["psnr"]) for line in everything] == [row["metrics"]["psnr"]["value"] for row in value["rows"]]


def test_a_list_from_the_many_step_run_alone_has_the_work_of_that_run(idc, common):
    """Also where another row, or an interrupted run, has made it before."""
    few = [word for word in common if not word.startswith("compare.num_inference_steps")]
    few += ["compare.num_inference_steps=2", "compare.rows.gamma=null", "compare.rows.fitted=null"]
    learned = "+compare.rows.learned={timesteps: {name: ld3, rounds: 1}}"
    rows = "{{timesteps: {{name: gits, discounts: [{}]}}}}"
    result = idc("compare", *few, *(f"+compare.rows.g{i}={rows.format(d)}" for i, d in enumerate((1.1, 1.2))), learned)
    assert result.code == 0, result.err
    (written,) = Path("outputs").rglob("compare.json")
    uniform, first, again, gradients = (row["search"] for row in json.loads(written.read_text())["rows"])
    assert uniform is None
    assert first["step_images"] == again["step_images"] == 4 * 2  # steps of the reference, images
    assert first["network_calls"] == again["network_calls"] == 2 * 4 * 2  # without image guidance
    assert first["seconds"] > 0 and again["seconds"] > 0
    # Of either image, the first step's call, two at the other, and those again for the gradient; then lists are scored.
    assert gradients["step_images"] >= 4 * 2 + 2 * (1 + 2 + 2) + 2 * 2


def test_work_of_a_search_is_its_own_whatever_is_on_disk_already(idc, common):
    """The many-step run counts once, whether a search makes it or finds it; so do lists that others have sampled."""
    few = [word for word in common if not word.startswith(("compare.num_inference_steps", "compare.num_evaluated"))]
    few += ["compare.num_inference_steps=2", "compare.num_evaluated=1", "compare.rows.uniform=null"]
    few += ["compare.rows.fitted.label=fitted"]
    few += ["+compare.rows.both={label: both, timesteps: gamma, sampler: fitted}"]
    work = []
    for folder in ("first", "second"):
        assert idc("compare", *few, f"hydra.run.dir={folder}").code == 0
        trace = [json.loads(line) for line in Path(folder, "trace.jsonl").read_text().splitlines()]
        rows = json.loads(Path(folder, "compare.json").read_text())["rows"]
        found = {row["label"]: row["search"]["step_images"] for row in rows}
        tried = [row["step_images"] for row in trace if row["split"] == "search" and row["sampler"] == "fitted"]
        # The reference's 4 steps on 2 images, every list that was tried, and the last fit of 2 steps on both. A list
        # takes a fit and a result on either half.
        assert found["fitted"] == 4 * 2 + 2 * 2 and found["both"] == found["fitted"] + sum(tried)
        assert 0 < max(tried) <= 2 * 2 * 2
        work.append(found)
    assert work[0] == work[1]


def test_a_reference_by_the_samplers_that_are_asked_for(idc, random_model):
    """A block each; rows follow their reference, and its own steps reproduce it."""
    result = idc(
        "compare",
        "task=stablesr",
        f"model.path={random_model('stablesr')}",
        "recipe=none",
        "num_inference_steps=3",
        "compare=table3_stablesr",
        "compare.sampler=[ancestral,ddim]",
        "compare.num_inference_steps=3",
        "compare.num_searched=1",
        "compare.num_evaluated=1",
        "compare.num_images=1",
        "compare.metrics=[psnr]",
        "evaluate.latency=false",
        *(
            f"compare.rows.{name}=null"
            for name in ("bk_sdm_base", "bk_sdm_small", "bk_sdm_tiny", "depth_8_gamma", "depth_8", "depth_9")
        ),
        "+compare.rows.full={}",
        "+compare.rows.plain={sampler: ddim}",
    )
    assert result.code == 0, result.err
    (written,) = Path("outputs").rglob("compare.json")
    value = json.loads(written.read_text())
    assert value["reference"]["sampler"] == "ancestral and ddim" and value["blocks"] == ["ancestral", "ddim"]
    rows = {row["name"]: row for row in value["rows"]}
    assert {name: row["sampler"] for name, row in rows.items()} == {
        "full, ancestral": "ancestral",
        "plain, ancestral": "ddim",
        "full, ddim": "ddim",
        "plain, ddim": "ddim",
    }
    exact = {name for name, row in rows.items() if row["metrics"]["psnr"].get("perfect")}
    assert exact == {"full, ancestral", "full, ddim", "plain, ddim"}


@pytest.mark.parametrize(("model", "sampler"), [("tiny", "ddim"), ("official", "ancestral")])
def test_stablesr_is_compared_as_it_is_published(idc, model, sampler):
    made = idc("compare", "task=stablesr", "compare=table3_stablesr", f"model={model}", "--cfg", "job", "--resolve").out
    assert f"  sampler: {sampler}\n" in made.partition("\ncompare:\n")[2].partition("\n  rows:")[0]


def test_an_interrupted_comparison_goes_on(idc, common, monkeypatch):
    from idcompress.stages import compare

    few = [*(word for word in common if not word.startswith("compare.num_inf")), "compare.num_inference_steps=2"]
    rows, made = compare._row, []

    def fails_at_third(*arguments, **named):
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return rows(*arguments, **named)

    monkeypatch.setattr(compare, "_row", fails_at_third)
    idc("compare", *few)
    monkeypatch.setattr(compare, "_row", rows)
    (trace,) = Path("outputs").rglob("trace.jsonl")
    before = trace.read_text()
    result = idc("compare", *few)
    assert result.code == 0 and "continuing the interrupted run" in result.out
    assert trace.read_text().startswith(before) and before
    keys = [re.sub(r'"\w+_seconds": [\d.]+', "", line) for line in trace.read_text().splitlines()]
    assert len(keys) == len(set(keys))


def test_finished_runs_stand_in_one_table(idc, common):
    base = [word for word in common if not word.startswith("compare.")]
    few = (*base, "evaluate.num_samples=2", "evaluate.alternatives=false", "evaluate.metrics=[psnr]")
    for depth in (1, 2):
        assert idc("evaluate", *few, f"depth={depth}", f"hydra.run.dir=done/depth_{depth}").code == 0
    result = idc("compare", *base, "runs=done")
    assert result.code == 0, result.err
    (written,) = Path("outputs").rglob("compare.json")
    rows = json.loads(written.read_text())["rows"]
    assert [row["name"] for row in rows] == ["depth_1", "depth_2"]
    assert rows[0]["params"] < rows[1]["params"]
    assert rows[1]["metrics"]["psnr"]["minus_first"]["num_images"] == 2
    nothing = idc("compare", *base, "runs=outputs/ip2p/nowhere")
    assert nothing.code == 2 and "no such folder" in nothing.err and nothing.err.count("\n") == 1


def test_compress_ends_with_a_comparison_where_one_is_named(idc, common):
    words = [word for word in common if word not in ("recipe=none",)]
    result = idc(
        "compress",
        "experiment=smoke",
        *words,
        "compare=equal_cost",
        "compress.stages=[depth_search]",
        "compare.rows.fitted=null",
        "compare.rows.gamma=null",
    )
    assert result.code == 0, result.err
    assert len(list(Path("outputs").rglob("compare/compare.json"))) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["+compare.rows.new={sampler: dddim}"], "compare.rows.new.sampler"),
        (["+compare.rows.new={timestep: gamma}"], "did you mean 'timesteps'"),
        (["+compare.rows.new={timesteps: gama}"], "no timesteps is called 'gama'"),
        (["+compare.rows.new={cut: {name: depth_skp}}"], "no prune is called 'depth_skp'"),
        (["+compare.rows.new=3"], "compare.rows.new must be like"),
        (["compare.sampler=fitted"], "rows may name it as theirs"),
        (["compare.sampler=ancestral"], "compare.rows.fitted.sampler=fitted is fitted to the reference"),
        (["compare.num_inference_steps=[0]"], "compare.num_inference_steps must be"),
        (["compare.guidance={image_guidance_scal: 1}"], "no such scale"),
        (["+compare.num_image=3"], "did you mean 'num_images'"),
        (["+compare.rows.new={recipe: nowhere.json}"], "no recipe at nowhere.json"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_sampled(idc, common, words, said):
    keys = {word.partition("=")[0] for word in words}
    result = idc("compare", *(word for word in common if word.partition("=")[0] not in keys), *words)
    assert result.code == 2 and result.err.count("\n") == 1 and said in result.err
    assert not list(Path("outputs").rglob("trace.jsonl"))
