"""The paper's protocols: what they fix, and a run of each on a small set in the documented layout."""

import json
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from idcompress import config as configuration
from idcompress import registry
from idcompress.runs.recipe import Recipe

# data set, original's steps, compressed's, images, metrics, thresholds, guidance
PROTOCOLS = {
    "stablesr": ("super_resolution", 50, 20, 3000, ["fid", "target_psnr", "target_lpips"], {"psnr": 28}, {}),
    "controlnet": (
        "coco",
        20,
        15,
        5000,
        ["fid", "clip_score", "clip_aesthetic"],
        {"fid": 22},
        {"guidance_scale": 9.0},
    ),
    "ip2p": (
        "instruct_pix2pix",
        50,
        10,
        5000,
        ["clip_similarity", "clip_directional_similarity"],
        {"clip_similarity": 0.7, "clip_directional_similarity": 0.2},
        {"guidance_scale": 7.5, "image_guidance_scale": 1.0},
    ),
}


@pytest.mark.parametrize("task", PROTOCOLS)
def test_a_protocol_fixes_what_the_paper_says(task):
    configuration.register()
    with initialize_config_dir(str(configuration.conf_dir()), version_base="1.3"):
        made = configuration.to_config(compose("config", overrides=[f"experiment=protocol_{task}"]))
    data, original, compressed, images, metrics, thresholds, guidance = PROTOCOLS[task]
    assert (made.task.name, made.model.name, made.data.name) == (task, "official", data)
    assert (made.num_inference_steps, made.step_counts(), made.evaluate.num_samples) == (original, [compressed], images)
    assert made.evaluate.metrics == metrics
    assert {row["metric"]: row["bound"] for row in made.depth_search.thresholds} == thresholds
    assert made.guidance() == guidance
    assert (made.depth, made.depth_search.fallbacks, made.data.search_split) == (None, [], "train")
    images = 5000 if task == "controlnet" else 100  # as many as the FIDs of the paper's table are of
    assert made.depth_search.num_samples == images
    assert (made.depth_search.num_samples, made.tsopt.num_samples, made.tsopt.reference_steps)[1:] == (100, 50)
    for name in metrics:  # their parameters fit, whether or not the weights are here
        registry.bind(registry.load("metric", name).Metric, made.metrics.get(name, {}), f"metrics.{name}")
    assert made.metrics["fid"].get("against", "image") == ("target" if task == "stablesr" else "image")


def times_add_up(run, elapsed):
    """The parts of the run sum to its wall time, and those of a stage to what the run gave to it."""
    whole = json.loads((run / "timing.json").read_text())
    assert sum(whole["seconds"].values()) == pytest.approx(whole["wall_seconds"])
    assert 0 < whole["wall_seconds"] < elapsed
    given = {}
    for name, seconds in whole["seconds"].items():
        stage = name.partition("/")[0]
        given[stage] = given.get(stage, 0) + seconds
    assert set(given) == {"depth_search", "tsopt", "evaluate", "report", "other"}
    for stage in set(given) - {"other"}:
        parts = json.loads((run / stage / "timing.json").read_text())
        assert sum(parts["seconds"].values()) == pytest.approx(parts["wall_seconds"])
        assert parts["wall_seconds"] == pytest.approx(given[stage], abs=0.1)
    for name in ("load", "encode", "denoise", "decode", "measure"):
        assert whole["seconds"][f"tsopt/{name}"] > 0


@pytest.mark.parametrize(("task", "layout"), [("stablesr", "div2k"), ("controlnet", "captioned"), ("ip2p", "pairs")])
def test_a_protocol_runs_on_the_documented_layout(task, layout, request, idc, random_model):
    folder = request.getfixturevalue(layout)
    own = [f"data.options.captions_file={folder}/blip.json"] if task == "controlnet" else []
    small = ["tsopt.num_samples=2", "evaluate.num_samples=3", "evaluate.metrics=[psnr]", "evaluate.latency=false"]
    small += ["num_inference_steps=2", "tsopt.num_inference_steps=1", "tsopt.reference_steps=2", "timesteps=uniform"]
    paths = [f"data.path={folder}", f"model.path={random_model(task)}", "depth=9", "evaluate.alternatives=false"]
    began = time.perf_counter()
    result = idc("compress", f"experiment=protocol_{task}", *paths, *own, *small, "hydra.run.dir=run")
    assert result.code == 0, result.err
    times_add_up(Path("run"), time.perf_counter() - began)
    metrics = json.loads(Path("run/evaluate/metrics.json").read_text())
    assert (metrics["num_images"], metrics["recipe"]["depth"], len(metrics["recipe"]["timesteps"])) == (3, 9, 1)
    recipe = Recipe.load(Path("run/tsopt/recipe.json"))
    options = {"captions_file": f"{folder}/blip.json"} if task == "controlnet" else {}
    training = registry.load("data", PROTOCOLS[task][0]).load(str(folder), "train", **options)
    assert recipe.searched_photographs() <= {photo.digest for photo in training}
    assert len(recipe.searched_photographs()) == 2
    rows = Path("run/evaluate/per_image.csv").read_text().splitlines()[1:]
    assert metrics["num_photographs_seen"] == 0
    if task == "controlnet":
        assert all(",a square" in row.replace('"', ",") for row in rows)
