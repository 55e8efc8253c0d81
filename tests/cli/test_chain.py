"""The chain through the command line: stage by stage, in one go, and what each leaves behind."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from idcompress import Recipe, load_pipeline

SMOKE = "experiment=smoke"


def only(pattern: str) -> Path:
    found = sorted(Path().glob(pattern))
    assert len(found) == 1, found
    return found[0]


def decisions(path: Path) -> dict:
    recipe = json.loads(path.read_text())
    return {k: recipe[k] for k in ("task", "model", "cut", "plan", "free_steps")}


@pytest.mark.parametrize("task", ["ip2p", "controlnet"])
def test_stages_one_by_one_equal_compress(idc, random_model, task):
    common = (SMOKE, f"task={task}", f"model.path={random_model(task)}", "tsopt.num_inference_steps=[3,2]")
    common += ("timesteps=gamma", "sampler=ddim")
    for command in ("depth-search", "finetune", "tsopt", "evaluate", "report"):
        result = idc(command, *common)
        assert result.code == 0, result.err
    compressed = idc("compress", *common)
    assert compressed.code == 0, compressed.err
    assert compressed.out.startswith("recipe: none, the full model\n")

    chain = only("outputs/*/*/compress/*")
    for steps in (3, 2):
        alone = only(f"outputs/*/*/tsopt/*/steps_{steps}/recipe.json")
        assert decisions(alone) == decisions(chain / f"steps_{steps}" / "recipe.json")
        metrics = [json.loads((only("outputs/*/*/evaluate/*") / f"steps_{steps}/metrics.json").read_text())]
        metrics.append(json.loads((chain / f"evaluate/steps_{steps}/metrics.json").read_text()))
        assert metrics[0]["metrics"] == metrics[1]["metrics"]
    assert [json.loads(line)["depth"] for line in (chain / "depth_search/trace.jsonl").open()] == [13, 12, 11]


def test_what_an_evaluation_leaves(idc, random_model):
    common = (SMOKE, f"model.path={random_model('ip2p')}", "timesteps.budget=4")
    assert idc("compress", *common).code == 0
    folder = only("outputs/ip2p/*/compress/*/evaluate")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"version", "task", "model", "data", "num_images", "recipe", "metrics"} <= metrics.keys()
    for name in ("psnr", "ssim", "params", "params_paper", "gmacs", "num_inference_steps"):
        row = metrics["metrics"][name]
        assert {"original", "compressed", "uniform", "unit", "higher_is_better", "interval"} <= row.keys()
    psnr = metrics["metrics"]["psnr"]
    assert psnr["original"] is None and "equal" in psnr["notes"]["original"]
    assert psnr["interval"][0] <= psnr["compressed"] <= psnr["interval"][1]
    rows = list(csv.DictReader((folder / "per_image.csv").open()))
    assert len(rows) == metrics["num_images"] == 2
    assert sum(float(row["psnr.compressed"]) for row in rows) / 2 == pytest.approx(psnr["compressed"])
    for system in ("original", "compressed", "uniform", "image", "target", "depth_skipped"):
        assert len(list((folder / "images" / system).glob("*.png"))) == 2

    run = folder.parent
    for name in ("config.yaml", "environment.json", "log.txt", "run.json", "recipe.json"):
        assert (run / name).is_file()
    recipe = Recipe.load(run)
    searched = recipe.searched_photographs()
    evaluated = {row["name"].split("_")[1] for row in rows}
    assert searched and not evaluated & {n for e in recipe.provenance for n in e["photographs"]}
    pipeline = load_pipeline(run)
    assert pipeline.scheduler.timesteps.tolist() == list(recipe.timesteps)
    assert pipeline.unet.config.depth == recipe.depth == 11


def test_recipe_argument(idc, random_model):
    common = (SMOKE, f"model.path={random_model('ip2p')}")
    result = idc("tsopt", *common, "depth=9")
    assert "no finished recipe" in result.out.splitlines()[0]
    assert result.code == 0
    first = only("outputs/*/*/tsopt/*/recipe.json")
    assert Recipe.load(first).depth == 9

    # an own stage's recipe is no earlier one; the full model is taken again
    assert "no finished recipe" in idc("tsopt", *common).out.splitlines()[0]
    assert idc("depth-search", *common, "depth=8").code == 0
    assert "depth 8" in idc("tsopt", *common, "seed=1").out.splitlines()[0]
    assert idc("tsopt", *common, "recipe=none", "seed=2").out.startswith("recipe: none")

    # recipe=FILE brings its task and model along
    result = idc("evaluate", SMOKE, f"recipe={first}")
    assert result.code == 0, result.err
    assert "depth 9" in result.out.splitlines()[0]
    assert idc("evaluate", SMOKE, f"recipe={first}", "task=controlnet").code == 2


def test_depth_outcomes(idc, random_model):
    common = ("depth-search", SMOKE, f"model.path={random_model('ip2p')}")
    fails = idc(*common, "depth_search.thresholds=[{metric:ssim,bound:1.5}]")
    assert fails.code == 2
    assert fails.err.count("\n") == 1
    assert "the full model already fails" in fails.err and "missed by 0.5" in fails.err

    nothing = idc(*common, "depth_search.thresholds=[{metric:psnr,bound:99}]")
    assert nothing.code == 0
    assert "no level can go" in nothing.out
    recipe = Recipe.load(next(p for p in Path("outputs").glob("*/*/depth_search/*/recipe.json")))
    assert recipe.depth is None and recipe.timesteps is None

    both = idc(*common, "depth_search.thresholds=[{metric:psnr,bound:5},{metric:ssim,bound:0.5,direction:at_least}]")
    assert both.code == 0


@pytest.mark.parametrize("arguments", [(), ("depth=11",)], ids=["searched", "given"])
def test_sizes_are_told_by_both_counting_rules(idc, random_model, arguments):
    result = idc("depth-search", SMOKE, f"model.path={random_model('ip2p')}", *arguments)
    assert result.code == 0, result.err
    unet = load_pipeline(next(Path("outputs").glob("*/*/depth_search/*/recipe.json"))).unet
    total = sum(parameter.numel() for parameter in unet.parameters())
    embedding = sum(parameter.numel() for parameter in unet.time_embedding.parameters())
    line = next(line for line in result.out.splitlines() if "parameters" in line)
    assert f"{total:,} parameters of the U-Net (" in line
    assert f"by the paper's count, without time embedding, {total - embedding:,} (" in line


def test_translate(idc, random_model, tmp_path):
    model = f"model.path={random_model('ip2p')}"
    pictures = {
        "grey.png": Image.new("L", (40, 30), 90),
        "alpha.png": Image.new("RGBA", (30, 50), (200, 10, 10, 128)),
        "deep.png": Image.new("I;16", (33, 20), 40_000),
        "one.png": Image.new("RGB", (1, 1), (1, 2, 3)),
        "long.jpg": Image.new("RGB", (400, 3), (1, 200, 3)),
    }
    folder = tmp_path / "in"
    folder.mkdir()
    for name, picture in pictures.items():
        picture.save(folder / name)
    result = idc("translate", model, SMOKE, f"image={folder}", "prompt=make it warmer", "output.path=out")
    assert result.code == 0, result.err
    settings = json.loads(Path("out/translate.json").read_text())
    assert {row["output"] for row in settings["images"]} == {f"{Path(n).stem}.png" for n in pictures}
    for row in settings["images"]:
        picture = Image.open(Path("out") / row["output"])
        assert picture.mode == "RGB" and max(picture.size) == 32 and min(picture.size) >= 4


def test_batch_size_changes_nothing(idc, random_model):
    common = ("depth-search", SMOKE, f"model.path={random_model('controlnet')}", "task=controlnet")
    for size in (1, 3):
        assert idc(*common, f"batch_size={size}", "depth_search.num_samples=3").code == 0
        shutil.rmtree("outputs/cache")
    values = [
        [json.loads(line)["metrics"]["psnr"] for line in trace.open()]
        for trace in Path("outputs").glob("*/*/depth_search/*/trace.jsonl")
    ]
    assert len(values) == 2
    assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_references_are_computed_once(idc, random_model, monkeypatch):
    from idcompress.bench import bench

    calls = []
    original = bench.translate
    monkeypatch.setattr(bench, "translate", lambda *a, **k: calls.append(len(a[3])) or original(*a, **k))
    common = (SMOKE, f"model.path={random_model('ip2p')}")
    assert idc("depth-search", *common).code == 0
    assert calls.count(4) == 6  # two images at depths 13 (the reference itself), 12 and 11
    calls.clear()
    assert idc("depth-search", *common).code == 0
    assert calls.count(4) == 4  # the reference comes from the cache
    calls.clear()
    assert idc("depth-search", *common, "depth_search.num_samples=3").code == 0
    assert calls.count(4) == 7  # only the third image's reference is new
