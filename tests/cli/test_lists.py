"""Every strategy on the command line, under the sampler that will run its list, on each task."""

import json
from pathlib import Path

import pytest

from idcompress import Recipe

SMALL = ("tsopt.num_inference_steps=3", "tsopt.num_samples=2", "tsopt.reference_steps=5", "recipe=none")
SCALES = {"ip2p": ("guidance_scale=1", "image_guidance_scale=1"), "controlnet": ("guidance_scale=1",), "stablesr": ()}
CASES = [
    ("gits", "fitted", "ip2p"),
    ("pattern", "fitted", "stablesr", "timesteps.budget=4"),
    ("arctan", "unipc", "controlnet", "timesteps.factor=4"),
    ("ld3", "unipc", "stablesr", "timesteps.rounds=1", "timesteps.learning_rate=0.1"),
    ("autodiffusion", "dpm_solver", "stablesr", "timesteps.population=2", "timesteps.epochs=2"),
]


@pytest.mark.parametrize(("name", "sampler", "task", "keys"), [(*case[:3], case[3:]) for case in CASES])
def test_a_strategy_searches_under_the_sampler_that_will_run_its_list(idc, random_model, name, sampler, task, keys):
    words = (f"task={task}", f"model.path={random_model(task)}", f"timesteps={name}", f"sampler={sampler}")
    result = idc("tsopt", *words, *SMALL, *SCALES[task], *keys, "hydra.run.dir=run")
    assert result.code == 0, result.err
    recipe = Recipe.load("run")
    assert (recipe.sampler, len(recipe.timesteps)) == (sampler, 3)
    assert (recipe.plan.coefficients is not None) == (sampler == "fitted")
    rows = [json.loads(line) for line in Path("run/trace.jsonl").read_text().splitlines()]
    assert list(recipe.timesteps) in [row["timesteps"] for row in rows]
    assert len(rows) > 1  # more lists than the uniform one
    best = max(row["psnr"] for row in rows)
    assert next(row["psnr"] for row in rows if row["timesteps"] == list(recipe.timesteps)) == best or name == "gits"


@pytest.mark.parametrize(("sampler", "why"), [("fitted", "fits its numbers anew"), ("ancestral", "draws fresh noise")])
def test_gradients_through_a_sampler_that_has_none_are_refused_before_anything_is_loaded(idc, sampler, why):
    result = idc("tsopt", "task=ip2p", "timesteps=ld3", f"sampler={sampler}", "model.path=nowhere", *SMALL)
    assert result.code == 2 and result.err.count("\n") == 1
    assert f"sampler={sampler} {why}" in result.err and "use sampler=ddim, dpm_solver or unipc" in result.err


def test_pattern_judges_on_few_images_first(idc, random_model):
    """Where that leaves no doubt: the same list from fewer steps of images, and no early look without early_stop."""
    words = (
        "task=ip2p",
        f"model.path={random_model('ip2p')}",
        "timesteps=pattern",
        "timesteps.budget=8",
        *SCALES["ip2p"],
    )
    words += ("tsopt.num_inference_steps=2", "tsopt.num_samples=8", "tsopt.reference_steps=3", "recipe=none")
    found, sampled, skipped = [], [], []
    for stop in ("0.98", "null"):
        folder = f"run_{stop}"
        result = idc("tsopt", *words, f"early_stop={stop}", f"hydra.run.dir={folder}")
        assert result.code == 0, result.err
        rows = [json.loads(line) for line in Path(folder, "trace.jsonl").read_text().splitlines()]
        found.append(Recipe.load(folder).timesteps)
        skipped.append(max(row["num_skipped"] for row in rows))
        sampled.append(sum(len(row["per_image"]) for row in {str(row["timesteps"]): row for row in rows}.values()))
        assert len({str(row["timesteps"]) for row in rows}) <= 8 + 1
    assert found[0] == found[1]
    assert skipped[0] > 0 == skipped[1]
    assert sampled[0] < sampled[1]


def test_autodiffusion_trades_layers_for_steps(idc, random_model):
    """The published form with layers: the plan names those that each step passes by, and every command follows it."""
    words = ("task=ip2p", f"model.path={random_model('ip2p')}", *SCALES["ip2p"], *SMALL)
    words += ("tsopt.num_inference_steps=4", "timesteps=autodiffusion", "timesteps.most_skipped=0.6")
    words += ("timesteps.population=6", "timesteps.epochs=6", "timesteps.mutations=2", "timesteps.crossovers=2")
    result = idc("tsopt", *words, "hydra.run.dir=run")
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in Path("run/trace.jsonl").read_text().splitlines()]
    keys = [json.dumps([row["timesteps"], row.get("skip")]) for row in rows]
    assert len({*keys}) == len(keys) and any(any(row.get("skip", ())) for row in rows)
    assert any(len(row["timesteps"]) > 4 for row in rows)
    again = idc("tsopt", *words, "hydra.run.dir=run")
    assert again.code == 0 and Path("run/trace.jsonl").read_text().count("\n") == len(rows)

    chosen = max((row for row in rows if any(row.get("skip", ()))), key=lambda row: row["psnr"])
    value = json.loads(Path("run/recipe.json").read_text())
    value["plan"]["steps"] = [
        {"timestep": timestep, "depth": None, "passes": "all", "refresh": True, "skip": skip}
        for timestep, skip in zip(chosen["timesteps"], chosen["skip"], strict=True)
    ]
    Path("layers.json").write_text(json.dumps(value))
    result = idc(
        "evaluate", "recipe=layers.json", "evaluate.num_samples=2", "evaluate.metrics=[psnr]", "hydra.run.dir=measured"
    )
    assert result.code == 0, result.err
    measured = json.loads(Path("measured/metrics.json").read_text())["metrics"]["gmacs"]
    assert measured["compressed"] < measured["original"]
    value["plan"]["steps"][0]["skip"] = ["conv_in"]
    Path("wrong.json").write_text(json.dumps(value))
    result = idc("evaluate", "recipe=wrong.json", "evaluate.num_samples=2", "hydra.run.dir=wrong")
    assert result.code == 2 and "passes 'conv_in' by, which is no such layer of this U-Net" in result.err
