"""resolution_px: any side that fits the autoencoder, in searches, evaluations and translations."""

import json
from pathlib import Path

import pytest
from PIL import Image

from idcompress import registry
from idcompress.bench.bench import open_bench
from idcompress.bench.translate import uniform_plan
from idcompress.errors import IdcError
from idcompress.images.photo_sets import packaged
from idcompress.sources.load import load_source

SCALES = {"guidance_scale": 2.0, "image_guidance_scale": 1.5}


@pytest.mark.parametrize(("task", "px"), [("ip2p", 44), ("controlnet", 20), ("stablesr", 72)])
def test_every_depth_works_at_a_side_that_the_levels_do_not_halve(random_model, task, px):
    model = load_source(task, {"name": "random", "path": str(random_model(task))})
    entry = registry.load("task", task).Task()
    bench = open_bench(entry, model, packaged("search"), num_samples=1, resolution_px=px)
    plan = uniform_plan(model.process, 1, guidance={name: SCALES[name] for name in entry.guidance_scales})
    for depth in (1, 4, 9, 12, 13):
        assert bench.images(model.at(model.chosen(depth)), plan, "").shape == (1, 3, px, px)
    with pytest.raises(IdcError, match=r"resolution_px must be a multiple of [48], by which the autoencoder shrinks"):
        open_bench(entry, model, packaged("search"), num_samples=1, resolution_px=px + 2)


def test_a_search_and_an_evaluation_at_another_side(idc, random_model):
    keys = ("experiment=smoke", f"model.path={random_model('ip2p')}", "timesteps=uniform")
    result = idc("compress", *keys, "compress.stages=[tsopt,evaluate]", "resolution_px=24", "hydra.run.dir=run")
    assert result.code == 0, result.err
    pictures = list(Path("run/evaluate/images/compressed").iterdir())
    assert len(pictures) == 2 and {Image.open(path).size for path in pictures} == {(24, 24)}
    recipe = json.loads(Path("run/tsopt/recipe.json").read_text())
    assert recipe["provenance"][-1]["resolution_px"] == 24
    result = idc("evaluate", *keys, "recipe=run/tsopt/recipe.json")
    assert "this evaluation is at the model's own size, and the recipe was searched at 24 px" in result.out


def test_a_side_that_does_not_fit_is_one_line_before_anything_is_loaded(idc, random_model):
    result = idc("tsopt", "experiment=smoke", f"model.path={random_model('ip2p')}", "resolution_px=42")
    assert result.code == 2 and result.err.count("\n") == 1 and "loading" not in result.out
    assert "resolution_px must be a multiple of 4, by which the autoencoder shrinks, got 42" in result.err


@pytest.mark.parametrize(("task", "px", "size"), [("ip2p", 24, (24, 12)), ("stablesr", 128, (64, 32))])
def test_a_translation_at_another_side(idc, random_model, task, px, size):
    Image.effect_noise((16, 8), 80).convert("RGB").save("a.png")
    keys = (f"task={task}", f"model.path={random_model(task)}", "recipe=none", "num_inference_steps=1", "image=a.png")
    result = idc("translate", *keys, f"resolution_px={px}", "output.path=out")
    assert result.code == 0, result.err
    assert Image.open("out/a.png").size == size
    result = idc("translate", *keys, "resolution_px=70", "output.path=more")
    assert result.code == 2 and "resolution_px" in result.err and "70" in result.err
