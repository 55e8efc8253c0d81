"""`idc plan` on the command line: what it leaves, who takes it, restrictions, and interruptions."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from idcompress import Recipe, load_pipeline
from idcompress.bench.planning import Budget
from idcompress.core.plan import Plan, Step
from idcompress.core.random import image_generator
from idcompress.errors import IdcError
from idcompress.runs.trace import Trace
from idcompress.sources.load import forget_shared_model

IMAGES = (
    "plan.num_fitted=1",
    "plan.num_searched=1",
    "plan.num_validated=1",
    "num_inference_steps=6",
    "plan.num_certified=0",
)
SCALES = ("guidance_scale=1.5", "image_guidance_scale=1")
SMALL = (
    *("plan.macs=0.45", "plan.menu=[timesteps,depth]", "plan.patterns=[full,every_2nd]", "plan.lists=[trailing,gits]"),
    *("plan.depths=[5]", "plan.samplers=[fitted]", "plan.fills=[hold]", "plan.max_step_images=24"),
)
CERTIFIED = "plan.num_certified=2"


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
        result = idc("plan", *common, *SMALL, CERTIFIED, "hydra.run.dir=run")
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
    assert metrics["network_calls"] == 2 * metrics["step_images"]
    certificate = value["provenance"][-1]["certificate"]
    assert certificate == metrics["certificate"]
    assert certificate["references"] == ["6 steps by ddim", "2 steps by dpm_solver"]
    assert not {*certificate["images"].values()} & planned.searched_photographs()
    plain = [rival for rival in certificate["rivals"] if rival["plain"]]
    assert [rival["num_inference_steps"] for rival in plain] == [2] * 4  # 0.45 of six steps
    for reference in certificate["references"]:
        own = certificate["plan"][reference]["value"]
        for rival in certificate["rivals"]:
            against = rival["against"][reference]
            if against["perfect"]:  # two steps of either multistep solver are the second reference themselves
                assert reference == "2 steps by dpm_solver"
                continue
            minus = against["plan_minus_this"]
            assert minus["mean"] == pytest.approx(own - against["value"])
            assert minus["interval"][0] <= minus["mean"] <= minus["interval"][1]
    assert "neither fit nor search has seen" in certificate["sentence"]
    task = ("task=ip2p", f"model.path={random_model('ip2p')}", "recipe=run")
    few = ("evaluate.num_samples=1", "evaluate.latency=false", "num_inference_steps=6", "evaluate.metrics=[psnr]")
    result = idc("evaluate", *task, *few, "hydra.run.dir=evaluated")
    assert result.code == 0, result.err
    found = json.loads(Path("evaluated/metrics.json").read_text())["metrics"]
    assert found["psnr"]["compressed"] > 0
    assert found["gmacs"]["ratio"] * found["network_calls"]["ratio"] == pytest.approx(metrics["macs_ratio"])


def test_compiled_evaluations_compile_every_depth(planned, idc, random_model, monkeypatch, request):
    request.addfinalizer(forget_shared_model)  # which stays compiled
    compiled, called, forward = [], [], UNet2DConditionModel.forward

    def compile(module):
        def call(*args, **kwargs):
            compiled.append(type(module).__name__.endswith("UNet2DConditionModel"))
            return module._call_impl(*args, **kwargs)

        module._compiled_call_impl = call

    @functools.wraps(forward)
    def counted(unet, *args, **kwargs):
        called.append(len(compiled) > 0)
        return forward(unet, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    task = ("task=ip2p", f"model.path={random_model('ip2p')}", "recipe=run", "evaluate.compile=true")
    few = ("evaluate.num_samples=1", "evaluate.latency=false", "num_inference_steps=6", "evaluate.metrics=[psnr]")
    result = idc("evaluate", *task, *few, "evaluate.alternatives=false", "hydra.run.dir=compiled")
    assert result.code == 0, result.err
    assert sum(compiled) == sum(called) >= len(planned.plan)


def test_the_same_seed_and_an_interruption_give_the_same_plan(planned, idc, common, monkeypatch):
    rows, append = [], Trace.append

    def interrupted(self, row):
        if len(rows) == 5:
            raise KeyboardInterrupt
        rows.append(row)
        return append(self, row)

    monkeypatch.setattr(Trace, "append", interrupted)
    assert idc("plan", *common, *SMALL, CERTIFIED, "hydra.run.dir=again").code == 130
    assert not Path("again/recipe.json").exists()
    monkeypatch.setattr(Trace, "append", append)
    result = idc("plan", *common, *SMALL, CERTIFIED, "hydra.run.dir=again")
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


def test_compress_searches_a_plan_in_place_of_a_list(idc, random_model):
    task = ("task=ip2p", f"model.path={random_model('ip2p')}", *SCALES, *IMAGES, *SMALL)
    few = ("evaluate.num_samples=1", "evaluate.latency=false", "evaluate.metrics=[psnr]", "plan.num_certified=1")
    stages = "compress.stages=[plan,evaluate,report]"
    quick = ("plan.macs=[0.6,0.45]", "plan.menu=[]", "plan.patterns=[full]", "plan.lists=[trailing]")
    result = idc("compress", *task, *few, stages, *quick, "hydra.run.dir=all")
    assert result.code == 0, result.err
    recipes = sorted(Path("all/plan").glob("steps_*/recipe.json"))
    assert [Recipe.load(path).num_inference_steps for path in recipes] == [2, 3]
    with Image.open("all/plan/plan.png") as figure:
        assert figure.size[0] > 1000
    page = Path("all/report/report.md").read_text()
    for path in recipes:
        assert Recipe.load(path).provenance[-1]["certificate"]["sentence"][:60] in page
    assert "Plan of 2 steps" in page and "Quality over work" in page
    # a folder of several recipes stands for all of them
    again = idc("evaluate", "recipe=all/plan", f"model.path={random_model('ip2p')}", *few, "hydra.run.dir=both")
    assert again.code == 0, again.err
    assert sorted(path.parent.name for path in Path("both").glob("*/metrics.json")) == ["steps_2", "steps_3"]


def test_no_budget_has_a_worse_plan_than_a_tighter_one(idc, common, monkeypatch):
    best = Budget.best

    def unlucky(self, scores, others=()):
        one_step = Plan.over([0], guidance=self.guidance)
        return [one_step] if self.macs > 0.5 else best(self, scores, others)

    monkeypatch.setattr(Budget, "best", unlucky)
    quick = ("plan.macs=[0.45,0.6]", "plan.menu=[]", "plan.patterns=[full]", "plan.lists=[trailing]")
    result = idc("plan", *common, *SMALL, *quick, "hydra.run.dir=run")
    assert result.code == 0, result.err
    assert "budget 0.6: a tighter budget's plan is better than its own, and taken" in result.out + result.err
    looser, tighter = json.loads(Path("run/metrics.json").read_text())["plans"]
    assert [row["budget"]["macs"] for row in (looser, tighter)] == [0.6, 0.45]
    assert looser["plan"] == tighter["plan"] and len(tighter["plan"]["steps"]) == 2
    assert sorted(path.parent.name for path in Path("run").glob("*/recipe.json")) == ["steps_2", "steps_2_2"]


def test_bytes_store_less_of_the_model(idc, common):
    quick = ("plan.menu=[]", "plan.patterns=[every_2nd]", "plan.lists=[trailing]", "plan.depths=[1]")
    model = idc("plan", *common, *SMALL, *quick, "plan.bytes=1e9", "hydra.run.dir=whole")
    assert model.code == 0, model.err
    whole = json.loads(Path("whole/metrics.json").read_text())
    limit = 0.6 * whole["bytes"]
    result = idc("plan", *common, *SMALL, *quick, f"plan.bytes={limit}", "plan.ms=1e6", "hydra.run.dir=less")
    assert result.code == 0, result.err
    metrics, recipe = json.loads(Path("less/metrics.json").read_text()), Recipe.load("less")
    assert Recipe.load("whole").depth is None and 1 < recipe.depth < 13
    assert metrics["bytes"] <= limit < whole["bytes"] and 0 < metrics["ms"] < 1e6
    assert metrics["budget"] == {"macs": 0.45, "ms": 1e6, "bytes": limit}
    rows = [row for row in Trace(Path("less/trace.jsonl")).rows if row["part"] == "milliseconds"]
    assert [(row["depth"], row["passes"]) for row in rows] == [(None, 2), (1, 2)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plan.macs=0.01",), r"plan.macs=0.01 is less than the work of one step of this model, 0.1667 at the least"),
        (("plan.ms=1e-6",), r"plan.ms=1e-06 is less than the work of one step of this model, \d.* at the least"),
        (("plan.bytes=10",), r"plan.bytes=10 is less than the weights of one level .*, [\d,]+ bytes at the least"),
        (("plan.macs=null",), r"plan.macs must be a number above 0 .*null beside plan.ms"),
        (("plan.bytes=-1",), r"plan.bytes must be above 0, or null, got -1"),
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
    """The same noise gives the same picture, twice in a row, and from the folder that it is exported to."""
    scales = {"ip2p": {"guidance_scale": 1.5, "image_guidance_scale": 1.0}, "controlnet": {"guidance_scale": 1.5}}
    steps = (Step(999), Step(700), Step(400, 5, "held", False), Step(100, 7), Step(40, 5, "text"))
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
    assert [step.depth for step in pipeline.computed] == [None, None, 5, 7, 5]
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
    pipeline.disable()
    whole = load_pipeline(random_model(task), device="cpu", dtype="float32")
    plain, known = (one(**arguments, generator=image_generator(0, -1)).images[0] for one in (pipeline, whole))
    assert np.array_equal(plain, known) and np.abs(plain * 255 - made).max() > 2
    pipeline.enable()
    assert np.array_equal(pipeline(**arguments, generator=image_generator(0, -1)).images[0] * 255, own)

    result = idc("export", *same[:3], "export.path=folder")
    assert result.code == 0, result.err
    again = load_pipeline("folder", device="cpu", dtype="float32")
    assert again.computed == pipeline.computed
    assert np.array_equal(again(**arguments, generator=image_generator(0, -1)).images[0] * 255, own)
    folder = (f"task={task}", "model.path=folder", "recipe=none", "image=in.png", "dtype=float32", "prompt=darker")
    result = idc("translate", *folder, "hydra.run.dir=there")
    assert result.code == 0, result.err
    assert np.array_equal(np.asarray(Image.open("there/in.png")), made)


def test_a_plan_that_no_stock_pipeline_can_follow_is_refused(random_model):
    model = {"name": "tiny", "path": str(random_model("ip2p")), "repositories": None, "revision": None}
    steps, guidance = (Step(999), Step(400, 5), Step(400, 5)), {"guidance_scale": 1.5, "image_guidance_scale": 1.0}
    recipe = Recipe(task="ip2p", model=model, plan=Plan(steps, guidance=guidance), free_steps=False)
    with pytest.raises(IdcError, match="repeats a timestep"):
        load_pipeline(recipe, device="cpu")


def test_what_no_folder_can_hold_is_refused(planned, idc, random_model):
    task = ("task=ip2p", f"model.path={random_model('ip2p')}", "recipe=run")
    result = idc("export", *task, "export.format=onnx", "export.fold=true", "export.path=folder")
    assert result.code == 2 and not Path("folder").exists()
    assert "export.fold=true wants a plan whose steps all compute the same" in result.err
