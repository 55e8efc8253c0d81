"""Exported folders in plain diffusers, where idcompress cannot be imported."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from idcompress import Recipe, load_pipeline, registry
from idcompress.adapters.following import FollowsPlan
from idcompress.bench.translate import translate
from idcompress.core.plan import Step
from idcompress.errors import IdcError
from idcompress.export.component import standalone
from idcompress.schedulers import FixedTimestepsScheduler
from idcompress.sources.load import load_source
from idcompress.types import Example

from .folders import classes, export_to, noise, recipe_for

PROMPTS = {"ip2p": "make it warmer", "controlnet": "a bright photograph"}
STOCK_PROGRAM = """
import importlib.abc, os, re, sys, torch
from pathlib import Path
from PIL import Image

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "idcompress":
            raise ImportError("idcompress is hidden")

sys.meta_path.insert(0, Hidden())
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    os.chdir(folder)
    code = re.search(r"```python\\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[1]
    torch.manual_seed(7)
    exec(code)
assert "idcompress" not in sys.modules
"""


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """folder -> recipe of every embedded model that has a stock form."""
    monkeypatch.chdir(tmp_path)
    folders = {}
    for task in ("ip2p", "controlnet", "inpaint", "high_frequency"):
        recipe = recipe_for(task, None, 9, timesteps=(970, 640, 300, 40))
        folder = export_to(tmp_path / task, recipe)
        noise(64).save(folder / "input.png"), noise(64).save(folder / "mask.png")
        folders[folder] = recipe
    return folders


@pytest.fixture
def fitted(tmp_path, idc):
    """folder -> recipe of the same with numbers for its steps."""
    folders = {}
    for task in ("ip2p", "controlnet"):
        recipe = recipe_for(task, None, 9, timesteps=(970, 640, 300, 40))
        model = load_source(task, recipe.model, device="cpu", dtype="float32")
        recipe = recipe.derive_model(model.source)
        rows = ((0.05, -0.1), (0.02, 0.1, -0.2), (0.1, -0.1), (-0.05, 0.2, -0.1, 0.05))
        plan = dataclasses.replace(recipe.plan, sampler="fitted", coefficients=rows)
        fit = {"key": recipe.fit_key(plan, model.process.to_json())}
        recipe = recipe.derive({"stage": "tsopt", "fit": fit}, plan=plan)
        recipe.save(tmp_path / f"{task}.json")
        folder = tmp_path / f"{task}_fitted"
        result = idc("export", f"task={task}", f"recipe={tmp_path / task}.json", f"export.path={folder}")
        assert result.code == 0, result.err
        assert "plain diffusers loads it" in result.out
        noise(64).save(folder / "input.png")
        folders[folder] = recipe
    return folders


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """folder -> recipe whose steps leave out levels, guidance passes and side networks; one has fitted numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Recipe, "check_fit", lambda *_: None)  # the numbers are ours
    folders = {}
    rows = ((0.05, -0.1), (0.02, 0.1, -0.2), (0.1, -0.1), (-0.05, 0.2, -0.1, 0.05), ())
    for task, depth, fill in (
        ("ip2p", None, "linear"),
        ("controlnet", 9, "hold"),
        ("inpaint", None, "zero"),
    ):
        recipe = recipe_for(task, None, depth)
        steps = (Step(970), Step(700, 7), Step(640, 5, "held", False), Step(300), Step(40, 3, "text"))
        plan = dataclasses.replace(recipe.plan, steps=steps, fill=fill)
        if task == "ip2p":
            plan = dataclasses.replace(plan, sampler="fitted", coefficients=rows)
        recipe = recipe.derive({"stage": "plan"}, plan=plan)
        folder = export_to(tmp_path / f"{task}_planned", recipe, sampler=plan.sampler)
        noise(64).save(folder / "input.png"), noise(64).save(folder / "mask.png")
        folders[folder] = recipe
    return folders


def run_cards(exported, *python):
    """Run the code of each card where idcompress cannot be imported, and look at the picture that it wrote."""
    environment = os.environ | {"HF_MODULES_CACHE": str(next(iter(exported)).parent / "modules")}
    command = [*python, "-c", STOCK_PROGRAM, *map(str, exported)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for folder, recipe in exported.items():
        check(folder, recipe)


def check(folder, recipe):
    """The picture that the card's code wrote is the in-process one: to 1e-4, before rounding to 8 bits."""
    torch.manual_seed(7)
    prompt = PROMPTS.get(recipe.task, "")
    steps = len(recipe.timesteps)
    pipe = load_pipeline(recipe)
    further = {"mask_image": noise(64).convert("L")} if recipe.task == "inpaint" else {}
    further |= {"guidance_scale": 1.0} | recipe.guidance
    ours = pipe(prompt, image=noise(64), num_inference_steps=steps, **further, output_type="pt").images[0]
    theirs = torch.tensor(list(Image.open(folder / "output.png").tobytes())).view(64, 64, 3).permute(2, 0, 1)
    assert (ours * 255 - theirs).abs().max() <= 0.5 + 1e-4 * 255
    if recipe.task in PROMPTS and not (recipe.plan.is_plain and recipe.plan.coefficients is None):
        looped = by_the_loop(recipe, prompt)
        assert (looped * 255 - theirs).abs().max() <= 0.5 + 1e-4 * 255
        plain = by_the_loop(dataclasses.replace(recipe, plan=without_numbers(recipe.plan)), prompt)
        assert (plain * 255 - theirs).abs().max() > 5


def by_the_loop(recipe, prompt):
    """The picture (3, 64, 64) as `idc translate` samples it, from the latents that seed 7 draws."""
    model = load_source(recipe.task, recipe.model, device="cpu", dtype="float32")
    image = torch.tensor(np.asarray(noise(64))).permute(2, 0, 1) / 255
    example = Example(7, "", "", image, prompt, condition=image)
    task, pipeline = registry.load("task", recipe.task).Task(), model.for_recipe(recipe)
    return translate(task, pipeline, [example], recipe.plan, at_depth=lambda d: model.cut_further(pipeline, d))[0]


def without_numbers(plan):
    """The plan that computes everything, by DDIM."""
    return dataclasses.replace(plan.all_whole, sampler="ddim", coefficients=None)


def test_plain_diffusers_runs_the_card(exported):
    """The embedded models: the code of each card, where idcompress cannot be imported, makes the in-process picture."""
    run_cards(exported, sys.executable)


def test_plain_diffusers_runs_fitted_steps(fitted):
    """By the scheduler that the folder brings, and only where it is trusted; idcompress takes its own class instead."""
    run_cards(fitted, sys.executable)
    for folder, recipe in fitted.items():
        assert classes(folder)["scheduler"] == ["fixed_timesteps", "FixedTimestepsScheduler"]
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            diffusers.DiffusionPipeline.from_pretrained(folder)
        carried = folder / "scheduler/fixed_timesteps.py"
        assert "import idcompress" not in carried.read_text() and "from idcompress" not in carried.read_text()
        scheduler = load_pipeline(folder, device="cpu").scheduler
        assert type(scheduler) is FixedTimestepsScheduler
        assert scheduler.config.coefficients == [list(row) for row in recipe.plan.coefficients]
        carried.write_text(carried.read_text() + "\n")
        with pytest.raises(IdcError, match=r"scheduler/fixed_timesteps\.py was changed"):
            load_pipeline(folder, device="cpu")


def test_plain_diffusers_follows_plans(planned):
    """By the pipeline and the scheduler that the folder brings, and only where they are trusted."""
    run_cards(planned, sys.executable)
    for folder, recipe in planned.items():
        base = registry.load("task", recipe.task).Task
        own = base.own_pipeline_class or base.pipeline_class
        assert json.loads((folder / "model_index.json").read_text())["_class_name"] == ["pipeline", own]
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            diffusers.DiffusionPipeline.from_pretrained(folder)
        text = (folder / "pipeline.py").read_text()
        assert "import idcompress" not in text and "from idcompress" not in text
    ours = load_pipeline(folder, device="cpu")
    assert isinstance(ours, FollowsPlan) and ours.plan == recipe.plan
    assert ours.computed == load_pipeline(recipe, device="cpu").computed
    (folder / "pipeline.py").write_text(text + "\n")
    with pytest.raises(IdcError, match=r"pipeline\.py was changed"):
        load_pipeline(folder, device="cpu")


def test_a_class_that_stands_alone_brings_what_it_uses():
    names = {}
    exec(compile(standalone(FixedTimestepsScheduler), "fixed_timesteps.py", "exec"), names)
    assert "Fitted" in names and "fit_plan" not in names
    assert names["FixedTimestepsScheduler"](timesteps=[981, 3]).timesteps.tolist() == [981, 3]


@pytest.mark.slow
def test_a_second_environment(exported, fitted, planned, tmp_path):
    """The same in an environment of its own that has diffusers, transformers and no idcompress."""
    home = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    # the libraries are this environment's, all but the one that must not be there
    libraries = next(home.glob("lib/python*/site-packages"))
    for path in Path(diffusers.__file__).parents[1].iterdir():
        if "idcompress" not in path.name:
            (libraries / path.name).symlink_to(path)
    python = home / "bin/python"
    absent = subprocess.run([python, "-I", "-c", "import idcompress"], capture_output=True, check=False)
    assert absent.returncode == 1
    run_cards(exported | fitted | planned, python, "-I")
