"""Diff-Pruning: every network of a step shrinks with the others, by the task's loss, reloads without the package."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from idcompress import Recipe, load_pipeline, registry
from idcompress.adapters.cut_models import named
from idcompress.adapters.diff_pruning import denoising_networks, prune_by_taylor
from idcompress.adapters.training_batch import TrainingBatch
from idcompress.adapters.widths import with_widths
from idcompress.bench.bench import Bench
from idcompress.bench.calibration import Calibration
from idcompress.core.cut import Cut
from idcompress.errors import IdcError
from idcompress.pruning import diff_pruning
from idcompress.sources.load import load_source
from idcompress.types import CutRequest, Example

TASKS = {"ip2p": {"unet"}, "controlnet": {"unet", "controlnet"}, "stablesr": {"unet", "structure_encoder"}}


def size(network):
    return sum(p.numel() for p in network.parameters())


@pytest.fixture(scope="module")
def prepared(random_model):
    """task -> components and request over a random pipeline, loaded once."""
    made = {}

    def get(task):
        if task not in made:
            source, px = {"name": "random", "path": str(random_model(task))}, 64 if task == "stablesr" else 32
            model = load_source(task, source, device="cpu", dtype="float32", prune="none")
            image = torch.rand(3, px, px, generator=torch.Generator().manual_seed(0))
            edges = (image > 0.5).float()
            examples = [Example(i, "", "", image, "red", target=image.flip(-1), condition=edges) for i in range(2)]
            bench = Bench(registry.load("task", task).Task(), model, examples, {})
            calibration = Calibration(bench, [None], num_samples=1, prompts=[])  # its own photographs are not used
            batch = TrainingBatch([0, 1], examples, {})
            request = CutRequest(batches=lambda: [batch], loss=calibration.loss)
            made[task] = model.pipeline.components, request
        return made[task]

    return get


@pytest.mark.parametrize("task", TASKS)
def test_networks_of_a_step_shrink_together(prepared, task, tmp_path):
    """Widths live in the cut, the calibrated weights load into them, saved networks are what they were."""
    pytest.importorskip("torch_pruning")
    components, request = prepared(task)
    whole, cut = diff_pruning.candidates(components, request, ratio=0.25, timestep_stride=500)
    assert diff_pruning.apply(components, whole) == {}
    cut = Cut.from_json(json.loads(json.dumps(cut.to_json())))
    replaced = diff_pruning.apply(components, cut)
    assert replaced.keys() == TASKS[task] == set(diff_pruning.calibrate(components, replaced, cut, request))
    for name, network in replaced.items():
        assert 0.5 < size(network) / size(components[name]) < 0.75
        assert all(p.shape[0] > 0 for p in network.parameters())
    batch = request.batches()[0]
    losses = [request.loss({**components, **replaced}, batch, t).item() for t in (100, 900)]
    assert all(0 < value < 10 for value in losses)
    again = {}
    for name, network in replaced.items():
        named(network).save_pretrained(tmp_path / name)
        again[name] = type(network).from_pretrained(tmp_path / name)
    assert [request.loss({**components, **again}, batch, t).item() for t in (100, 900)] == pytest.approx(
        losses, rel=1e-6
    )
    for name, network in again.items():
        assert all(torch.equal(value, network.state_dict()[key]) for key, value in replaced[name].state_dict().items())
    assert all(not p.requires_grad for p in components["unet"].parameters())


def test_timesteps_up_to_the_first_uninformative_one_are_summed():
    """Losses 4, 8, 1, 0.3: with a threshold of 0.05 the fourth (0.3 <= 0.4) ends the sum before its gradient."""
    pytest.importorskip("torch_pruning")
    import tiny_random

    unet, asked = tiny_random.unet(), []
    values = {0: 4.0, 1: 8.0, 2: 1.0, 3: 0.3, 4: 5.0}
    inputs = torch.randn(1, 8, 8, 8), 3, torch.randn(1, 5, 16)

    def loss(networks, timestep):
        asked.append(timestep)
        output = networks["unet"](*inputs).sample.square().mean()
        return output / output.detach() * values[timestep]

    state, used = prune_by_taylor({"unet": unet}, loss, range(5), ratio=0.25, threshold=0.05)
    assert (used, asked[:4]) == (3, [0, 1, 2, 3]) and 4 not in asked
    assert unet.state_dict()["conv_in.weight"].shape[0] > state["unet"]["conv_in.weight"].shape[0]


def test_channels_that_do_nothing_go_first():
    """Half of a gated layer's inner channels are silent: those that stay are the others, with their weights."""
    pytest.importorskip("torch_pruning")
    import tiny_random

    unet = tiny_random.unet()
    inner = unet.mid_block.attentions[0].transformer_blocks[0].ff.net[2]
    silent = torch.arange(inner.in_features) % 4 == 0
    with torch.no_grad():
        inner.weight[:, silent] = 0
    inputs = torch.randn(1, 8, 8, 8), 3, torch.randn(1, 5, 16)
    state, _ = prune_by_taylor(
        {"unet": unet}, lambda n, t: n["unet"](*inputs).sample.square().mean(), [0], ratio=0.25, threshold=0.05
    )
    kept = state["unet"]["mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight"]
    assert kept.shape[1] == int((~silent).sum())
    assert (kept.abs().sum(0) > 0).all()


def test_widths_that_do_not_fit_are_refused():
    import tiny_random

    unet = tiny_random.unet()
    for widths in ({"conv_in": [99, 8]}, {"conv_in": [8]}, {"nothing": [1, 1]}, {"conv_in": [0, 8]}):
        with pytest.raises(IdcError, match="do not fit this model"):
            diff_pruning.apply({"unet": unet}, Cut("diff_pruning", {"widths": {"unet": widths}}))
    with pytest.raises(IdcError, match="must have the widths of networks"):
        diff_pruning.apply({"unet": unet}, Cut("diff_pruning", {"ratio": 0.1}))
    assert with_widths(unet, {}).config.widths == {}
    assert denoising_networks({"unet": unet, "other": torch.nn.Linear(1, 1)}) == {"unet": unet}


# the command


def test_from_the_search_to_an_exported_folder(idc, random_model, monkeypatch):
    pytest.importorskip("torch_pruning")
    common = ("prune=diff_pruning", f"model.path={random_model('ip2p')}")
    small = ("prune.ratio=0.25", "prune.timestep_stride=500", "depth_search.num_samples=1", "hydra.run.dir=run")
    result = idc("depth-search", *common, *small)
    assert result.code == 0, result.err
    assert "Diff-Pruning at ratio 0.25 given, nothing searched" in result.out
    recipe = Recipe.load("run")
    assert (recipe.cut.method, list(recipe.weights), recipe.kept) == (
        "diff_pruning",
        ["unet"],
        "diff_pruning 0.25 0.05 500",
    )
    assert "widths" not in json.dumps(recipe.provenance) and recipe.searched_photographs()
    # From here on the package is not needed.
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "torch_pruning" else find(n, *a))
    result = idc("export", "recipe=run/recipe.json", "export.path=out")
    assert result.code == 0, result.err
    assert "diff_pruning 0.25 0.05 500 has no stock form (its layers are narrower" in result.out
    one, other = (load_pipeline(place).unet.state_dict() for place in (Path("run"), Path("out")))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

    result = idc("depth-search", *common)
    assert result.code == 2
    assert result.err.splitlines()[-1].endswith("pip install 'torch-pruning>=1.6'")
    monkeypatch.setattr(importlib.util, "find_spec", find)
    result = idc("evaluate", *common, "recipe=none")
    assert result.code == 2 and "made by idc depth-search; run it first" in result.err


@pytest.mark.parametrize("key", ["ratio=1.0", "threshold=0.0", "timestep_stride=0"])
def test_parameters_out_of_range_are_one_line(idc, random_model, key):
    result = idc("depth-search", "prune=diff_pruning", f"prune.{key}", f"model.path={random_model('ip2p')}")
    assert result.code == 2
    (line,) = [line for line in result.err.splitlines() if "error" in line]
    assert f"prune.{key.partition('=')[0]} must" in line
