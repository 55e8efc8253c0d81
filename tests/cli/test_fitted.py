"""`sampler=fitted` on the command line: fitted by tsopt, used by what follows, refused where it does not hold."""

import json
import shutil
from pathlib import Path

import pytest

from idcompress import Recipe
from idcompress.core.fit import FitSettings

SMALL = ("tsopt.num_inference_steps=3", "tsopt.num_samples=2", "tsopt.reference_steps=6")
EVALUATED = ("evaluate.num_samples=1", "evaluate.latency=false", "num_inference_steps=4", "evaluate.metrics=[psnr]")
SCALES = {
    "ip2p": ("guidance_scale=1.5", "image_guidance_scale=1"),
    "controlnet": ("guidance_scale=1.5",),
    "stablesr": (),
}


@pytest.fixture(scope="module")
def fitted_runs(tmp_path_factory):
    """Folders of runs of `fit`, by task."""
    return tmp_path_factory.mktemp("fitted")


@pytest.fixture
def fit(idc, random_model, fitted_runs):
    """Bring the results of `idc tsopt sampler=fitted` into this folder, as run/; the recipe."""

    def run(task="ip2p"):
        if not (fitted_runs / task).is_dir():
            model = (f"task={task}", f"model.path={random_model(task)}", *SCALES[task])
            words = ("sampler=fitted", "timesteps=uniform", "recipe=none", *SMALL, "hydra.run.dir=run")
            result = idc("tsopt", *model, *words)
            assert result.code == 0, result.err
            shutil.copytree("run", fitted_runs / task)
        elif not Path("run").is_dir():
            shutil.copytree(fitted_runs / task, "run")
        return Recipe.load("run")

    return run


@pytest.mark.parametrize("task", SCALES)
def test_numbers_are_fitted_kept_and_used(fit, idc, random_model, task):
    recipe = fit(task)
    assert recipe.sampler == "fitted"
    assert [len(row) for row in recipe.plan.coefficients] == [2, 3, 4]
    (entry,) = recipe.provenance
    settings = {"order": 3, "ridge": 1e-3, "per_channel": False, "folds": 2}
    assert {name: entry["fit"][name] for name in settings} == settings
    assert FitSettings(**settings) == FitSettings()
    assert entry["fit"]["num_images"] == 2
    common = (f"task={task}", f"model.path={random_model(task)}", "recipe=run")
    result = idc("evaluate", *common, *EVALUATED, "hydra.run.dir=evaluated")
    assert result.code == 0, result.err
    found = json.loads(Path("evaluated/metrics.json").read_text())
    assert found["sampler"] == "fitted"
    psnr = found["metrics"]["psnr"]
    assert psnr["compressed"] != psnr["uniform"]  # the same list, by DDIM


def test_the_same_command_gives_the_same_numbers_and_samples_no_reference_again(fit, idc, random_model):
    words = ("sampler=fitted", "timesteps=uniform", "recipe=none", *SMALL, *SCALES["ip2p"])
    made, kept = [], []
    for folder in ("one", "other"):
        result = idc("tsopt", f"model.path={random_model('ip2p')}", *words, f"hydra.run.dir={folder}")
        assert result.code == 0, result.err
        assert len(Path(folder, "trace.jsonl").read_text().splitlines()) == 1  # uniform steps are the only list
        made.append(Recipe.load(folder).plan)
        kept.append({path.name: path.stat().st_ino for path in Path("outputs/cache/references").iterdir()})
    assert made[0] == made[1]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 4  # images and runs of two examples


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (("depth=9",), "cut"),
        (("depth=9", "guidance_scale=3"), "cut and guidance (guidance_scale 1.5, image_guidance_scale 1)"),
    ],
)
def test_other_settings_are_refused_with_the_command_that_refits(fit, idc, random_model, changes, what):
    fit()
    result = idc("evaluate", f"model.path={random_model('ip2p')}", "recipe=run", *EVALUATED, *changes)
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert f"this recipe's numbers for sampler=fitted were fitted for another {what}; fit them by: idc tsopt" in line
    command = line.partition("fit them by: idc ")[2].split()
    if len(changes) == 1:
        return
    again = idc(*command, f"model.path={random_model('ip2p')}", *SMALL[1:], "hydra.run.dir=refitted")
    assert again.code == 0, again.err
    refitted = idc("evaluate", f"model.path={random_model('ip2p')}", "recipe=refitted", *EVALUATED, *changes)
    assert refitted.code == 0, refitted.err


def test_a_list_or_weights_that_were_changed_by_hand_are_refused(fit, idc, random_model):
    recipe = fit()
    value = recipe.to_json()
    value["plan"]["steps"][1]["timestep"] = 490
    Path("run/recipe.json").write_text(json.dumps(value))
    result = idc("evaluate", f"model.path={random_model('ip2p')}", "recipe=run", *EVALUATED)
    assert result.code == 2
    assert "were fitted for another timesteps; fit them by: idc tsopt task=ip2p sampler=fitted" in result.err


def test_a_recipe_without_numbers_is_refused(idc, random_model):
    result = idc("evaluate", f"model.path={random_model('ip2p')}", "recipe=none", "sampler=fitted", *EVALUATED)
    assert result.code == 2
    wanted = "sampler=fitted moves by numbers fitted to a model and its list, and this recipe has none; fit them by:"
    assert wanted in result.err


def test_another_sampler_over_a_fitted_list_takes_no_numbers(fit, idc, random_model):
    fit()
    result = idc(
        "evaluate", f"model.path={random_model('ip2p')}", "recipe=run", *EVALUATED, "sampler=ddim", "hydra.run.dir=e"
    )
    assert result.code == 0, result.err
    psnr = json.loads(Path("e/metrics.json").read_text())["metrics"]["psnr"]
    assert psnr["compressed"] == psnr["uniform"]  # DDIM over uniform steps


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("fit.order=4", "fit.order must be between 1 and 3, got 4"),
        ("fit.ridge=-1", "fit.ridge must be 0 or more, got -1.0"),
        ("fit.folds=0", "fit.folds must be at least 1, got 0"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(idc, setting, message):
    result = idc("tsopt", "sampler=fitted", "recipe=none", "model.path=nowhere", setting)
    assert result.code == 2 and result.err.count("\n") == 1 and message in result.err
    assert "loading" not in result.out


def test_compress_fits_what_it_cut(idc, random_model):
    words = (
        f"model.path={random_model('ip2p')}",
        "sampler=fitted",
        "timesteps=uniform",
        "depth=9",
        "hydra.run.dir=run",
    )
    result = idc("compress", *words, "compress.stages=[depth_search,tsopt]", *SMALL, *SCALES["ip2p"], "threads=1")
    assert result.code == 0, result.err
    recipe = Recipe.load("run/tsopt")
    assert recipe.depth == 9 and recipe.plan.coefficients is not None


def test_compress_takes_the_best_list_and_sampler_and_shows_what_the_papers_recipe_gives(idc, random_model):
    words = (f"model.path={random_model('ip2p')}", "depth=9", "timesteps.budget=4", *SCALES["ip2p"], "threads=1")
    words += ("compress.stages=[depth_search,tsopt,evaluate,report]", *SMALL, *EVALUATED, "evaluate.num_samples=2")
    result = idc("compress", *words, "hydra.run.dir=run")
    assert result.code == 0, result.err
    recipe, papers = Recipe.load("run"), Recipe.load("run/paper")
    assert (recipe.sampler, recipe.provenance[-1]["strategy"]) == ("fitted", "pattern")
    assert (papers.sampler, papers.provenance[-1]["strategy"]) == ("ddim", "gamma")
    assert recipe.cut == papers.cut and recipe.parent == papers.parent
    *_, row, whole = json.loads(Path("run/evaluate/metrics.json").read_text())["alternatives"]
    assert (row["name"], row["sampler"], row["timesteps"]) == ("paper", "ddim", list(papers.timesteps))
    # and what the whole model would give for as much work
    uncut = Recipe.load("run/uncut")
    assert (uncut.cut, uncut.sampler, uncut.provenance[-1]["strategy"]) == (None, "fitted", "pattern")
    assert (whole["name"], whole["model"], whole["timesteps"]) == ("uncut", "original", list(uncut.timesteps))
    assert len(uncut.timesteps) <= len(recipe.timesteps) and 0.5 < whole["gmacs_ratio"] < 1.5
    worse = whole["metrics"]["psnr"]["compressed_minus_this"]["verdict"] == "worse"
    assert ("This cut saves memory, not work" in result.out) == worse
    # what the recipe itself is evaluated to
    own = idc("evaluate", "recipe=run/paper", words[0], *EVALUATED, "evaluate.num_samples=2", "hydra.run.dir=own")
    assert own.code == 0, own.err
    psnr = json.loads(Path("own/metrics.json").read_text())["metrics"]["psnr"]["compressed"]
    assert row["metrics"]["psnr"]["value"] == pytest.approx(psnr, abs=1e-6)
    assert "  paper: compressed model, 3 searched steps by ddim: psnr" in result.out
    report = Path("run/report/report.md").read_text()
    assert "The paper's own recipe (a searched gamma and DDIM, experiment=paper) at 3 steps" in report
    assert f"The whole model, searched like this plan, for as much work at {len(uncut.timesteps)} steps" in report


def test_the_papers_experiment_is_the_papers_own(idc, random_model):
    words = (f"model.path={random_model('ip2p')}", "depth=9", *SCALES["ip2p"], "threads=1", *SMALL, *EVALUATED)
    result = idc("compress", "experiment=paper", *words, "compress.stages=[tsopt,evaluate]", "hydra.run.dir=run")
    assert result.code == 0, result.err
    recipe = Recipe.load("run")
    assert (recipe.sampler, recipe.provenance[-1]["strategy"]) == ("ddim", "gamma")
    assert not Path("run/paper").exists()


def test_compress_without_a_timestep_search_samples_by_ddim(idc, random_model):
    words = (f"model.path={random_model('ip2p')}", *SCALES["ip2p"], *EVALUATED, "compress.stages=[evaluate]")
    result = idc("compress", *words, "hydra.run.dir=run")
    assert result.code == 0, result.err
    assert "sampler=ddim: no stage here fits the numbers of sampler=fitted; tsopt would" in result.out
    assert json.loads(Path("run/evaluate/metrics.json").read_text())["sampler"] == "ddim"


@pytest.mark.parametrize("study", ["instructions", "multi_depth", "solver", "stochastic"])
def test_a_study_says_before_anything_runs_that_it_fits_nothing(idc, study):
    result = idc("study", f"study={study}", "sampler=fitted", "model.path=nowhere", "recipe=none")
    assert result.code == 2
    assert result.err.startswith(f"idc: error: study={study} ") and "sampler=fitted to; use sampler=ddim" in result.err
