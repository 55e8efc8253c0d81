"""`idc plan` on the command line: what it leaves, who takes it, restrictions, and interruptions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from idcompress import Recipe, load_pipeline
from idcompress.core.plan import Plan, Step
from idcompress.core.random import image_generator
from idcompress.runs.trace import Trace

IMAGES = ("plan.num_fitted=1", "plan.num_searched=1", "plan.num_validated=1", "num_inference_steps=6")
SCALES = ("guidance_scale=1.5", "image_guidance_scale=1")
SMALL = (
    *("plan.macs=0.45", "plan.menu=[timesteps,depth]", "plan.patterns=[full,every_2nd]", "plan.lists=[trailing,gits]"),
    *("plan.depths=[5]", "plan.samplers=[fitted]", "plan.fills=[hold]", "plan.max_step_images=60"),
)


@pytest.fixture
def common(random_model):
    return ("task=ip2p", f"model.path={random_model('ip2p')}", "recipe=none", *SCALES, *IMAGES)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("plan") / "run"


@pytest.fixture
def planned(idc, common, kept):
    """A finished run as run/ in this folder; made once."""
    if not kept.is_dir():
        result = idc("plan", *common, *SMALL, "hydra.run.dir=run")
        assert result.code == 0, result.err
        shutil.copytree("run", kept)
    elif not Path("run").is_dir():
        shutil.copytree(kept, "run")
    return Recipe.load("run")


def test_what_a_search_leaves(planned, idc, random_model):
    value, metrics = (json.loads(Path("run", name).read_text()) for name in ("recipe.json", "metrics.json"))
    assert value["version"] == 2
    assert all({"timestep", "depth"} <= step.keys() for step in value["plan"]["steps"])
    assert planned.plan.steps[0].depth is None and planned.plan.fill == "hold"
    assert 0 < metrics["macs_ratio"] <= 0.45
    assert metrics["step_images"] > 0
    assert metrics["plan"] == value["plan"]
    task = ("task=ip2p", f"model.path={random_model('ip2p')}", "recipe=run")
    few = ("evaluate.num_samples=1", "evaluate.latency=false", "num_inference_steps=6", "evaluate.metrics=[psnr]")
    result = idc("evaluate", *task, *few, "hydra.run.dir=evaluated")
    assert result.code == 0, result.err
    found = json.loads(Path("evaluated/metrics.json").read_text())["metrics"]
    assert found["psnr"]["compressed"] > 0
    assert found["gmacs"]["ratio"] * found["network_calls"]["ratio"] == pytest.approx(metrics["macs_ratio"])


def test_the_same_seed_and_an_interruption_give_the_same_plan(planned, idc, common, monkeypatch):
    rows, append = [], Trace.append

    def interrupted(self, row):
        if len(rows) == 5:
            raise KeyboardInterrupt
        rows.append(row)
        return append(self, row)

    monkeypatch.setattr(Trace, "append", interrupted)
    assert idc("plan", *common, *SMALL, "hydra.run.dir=again").code == 130
    assert not Path("again/recipe.json").exists()
    monkeypatch.setattr(Trace, "append", append)
    result = idc("plan", *common, *SMALL, "hydra.run.dir=again")
    assert result.code == 0, result.err
    assert Recipe.load("again").plan == planned.plan
    whole, resumed = (
        [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in Trace(Path(run, "trace.jsonl")).rows]
        for run in ("run", "again")
    )
    assert whole == resumed


def test_the_full_space_never_loses_to_a_restriction(idc, common):
    same = ("plan.macs=0.45", "plan.depths=[5]", "plan.max_step_images=90")
    wide = ("plan.lists=[uniform,gamma]", "plan.samplers=[ddim]", "plan.fills=[hold,zero]", "plan.menu=[depth]")

    def best(*words):
        name = f"hydra.run.dir=run{len(list(Path().iterdir()))}"
        result = idc("plan", *common, *same, *words, name)
        assert result.code == 0, result.err
        rows = Trace(Path(name.removeprefix("hydra.run.dir="), "trace.jsonl")).rows
        return max(row["psnr"] for row in rows if row["part"] == "search")

    full = best(*wide)
    for peer in ("plan_deepcache", "plan_paper"):
        assert full >= best(f"experiment={peer}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plan.macs=0.01",), r"plan.macs=0.01 is less than the work of one step"),
        (("plan.macs=-1",), r"plan.macs must be a number above 0"),
        (("plan.menu=[timestep]",), r"plan.menu takes timesteps, .*did you mean 'timesteps'"),
        (("plan.depths=[13]",), r"plan.depths must lie between 1 and 12"),
        (("plan.samplers=[ancestral]",), r"plan.samplers: ancestral draws noise"),
        (("plan.samplers=[dim]",), r"plan.samplers.*did you mean 'ddim'"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_searched_is_one_clear_line(idc, common, words, message):
    import re

    result = idc("plan", *common, *SMALL, *words)
    assert result.code == 2
    assert re.search(message, result.err.strip().splitlines()[-1]), result.err


@pytest.mark.parametrize("task", ["ip2p", "controlnet", "stablesr"])
def test_a_pipeline_follows_the_plan_as_translate_does(idc, random_model, task):
    """The same noise gives the same picture, twice in a row."""
    scales = {"ip2p": {"guidance_scale": 1.5, "image_guidance_scale": 1.0}, "controlnet": {"guidance_scale": 1.5}}
    steps = (Step(999), Step(700), Step(400, 5, refresh=False), Step(100, 7))
    plan = Plan(steps, fill="linear", guidance=scales.get(task, {}))
    model = {"name": "tiny", "path": str(random_model(task)), "repositories": None, "revision": None}
    recipe = Recipe(task=task, model=model, plan=plan, free_steps=False)
    Path("plan").mkdir()
    recipe.save(Path("plan/recipe.json"))
    px = 16 if task == "stablesr" else 32
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (px, px, 3), dtype=np.uint8))
    picture.save("in.png")
    same = (f"task={task}", f"model.path={random_model(task)}", "recipe=plan", "image=in.png", "dtype=float32")
    result = idc("translate", *same, "prompt=darker", "hydra.run.dir=out")
    assert result.code == 0, result.err
    made = np.asarray(Image.open("out/in.png")).astype(int)

    pipeline = load_pipeline("plan", device="cpu", dtype="float32")
    assert [step.depth for step in pipeline.computed] == [None, None, 5, 7]
    noise = torch.randn((1, 4, 8, 8), generator=image_generator(0, 0))
    arguments = {"latents": noise, "output_type": "np"}
    if task == "stablesr":
        arguments |= {"tile_size": 8, "tile_overlap": 4, "eta": 0}
        arguments["image"] = picture
    else:
        arguments |= {"prompt": "darker", "num_inference_steps": 9, **plan.guidance}
        from idcompress.images.canny import canny
        from idcompress.images.pictures import to_tensor

        arguments["image"] = picture if task == "ip2p" else canny(to_tensor(picture)[None]).expand(-1, 3, -1, -1)
    for _ in range(2):
        own = pipeline(**arguments, generator=image_generator(0, -1)).images[0] * 255
        assert np.abs(own - made).max() <= 2
