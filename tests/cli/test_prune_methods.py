"""A prune method of another kind: `idc depth-search prune=toy`, whose candidates are no depths, from end to end."""

import copy
import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from idcompress import Recipe, registry
from idcompress.adapters import training
from idcompress.adapters.training_batch import TrainingBatch
from idcompress.bench import calibration
from idcompress.core.cut import Cut
from idcompress.core.depth_search import FullModelFailsError, cut_search
from idcompress.pruning import depth_skip
from idcompress.sources import load
from idcompress.sources.load import load_source
from idcompress.tasks.ip2p import Task

SHARES = [0.01, 0.9]


class Toy:
    """Scales the U-Net's convolutions down by a share; one candidate per share, the whole model first.

    Attributes:
        requests: what `candidates` was handed.
        parameters: by which parameters.
    """

    def __init__(self):
        self.requests, self.parameters, self.applied = [], [], []

    def candidates(self, components, request, *, shares: list[float] = SHARES, order: Literal["up", "down"] = "up"):
        self.requests.append(request)
        self.parameters.append((shares, order))
        return [Cut("toy"), *(Cut("toy", {"share": share}) for share in (shares if order == "up" else shares[::-1]))]

    def apply(self, components, cut):
        self.applied.append(cut)
        if "share" not in cut.choice:
            return {}
        unet = copy.deepcopy(components["unet"])
        for module in unet.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.data *= 1 - cut.choice["share"]
        return {"unet": unet}

    def words(self, components, cut):
        return "the whole model" if cut is None or not cut.choice else f"{cut.choice['share']:.0%} less"

    def members(self, **more):
        return {"candidates": self.candidates, "apply": self.apply, "words": self.words, "SOURCE": "", **more}


@pytest.fixture
def toy():
    return Toy()


@pytest.fixture
def search(idc, register, toy, random_model):
    """Run `idc depth-search prune=toy`; what the method needs, then the command line."""

    def run(*arguments, needs=None):
        flags = register("prune", "toy", **toy.members(**({} if needs is None else {"NEEDS": needs})))
        small = ("depth_search.num_samples=1", "depth_search.num_inference_steps=2", "num_inference_steps=2")
        small += ("guidance_scale=1", "image_guidance_scale=1", "depth_search.thresholds=[{metric: psnr, bound: 30}]")
        common = ("prune=toy", f"model.path={random_model('ip2p')}", *small, "hydra.run.dir=run")
        return idc("depth-search", *flags, *common, *arguments)

    return run


def only_line(result):
    assert result.code == 2
    (line,) = result.err.splitlines()
    return line


# Candidates.


def test_candidates_that_are_no_depths(search, idc, toy, random_model):
    """Chosen, written down and sampled by the stage that follows; a bound on the depth does not concern them."""
    result = search("depth_search.min_depth=11")
    assert result.code == 0, result.err
    assert [(request.batches, request.loss) for request in toy.requests] == [(None, None)]
    recipe = json.loads(Path("run/recipe.json").read_text())
    assert recipe["cut"] == {"method": "toy", "share": 0.01}
    rows = [json.loads(line) for line in Path("run/trace.jsonl").read_text().splitlines()]
    assert [row.get("share") for row in rows] == [None, 0.01, 0.9]
    assert [row["passed"] for row in rows] == [True, True, False]
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["share"] == 0.01
    assert metrics["metrics"] == rows[1]["metrics"]
    assert "1% less" in result.out and "90% less" in result.out
    assert "depth" not in "".join(line for line in result.out.splitlines() if "less" in line)

    recipe = Recipe.load("run")
    model = load_source("ip2p", recipe.model, device="cpu", dtype="float32", prune="toy")
    unet, whole = model.for_recipe(recipe).unet, model.pipeline.unet
    assert torch.equal(unet.conv_in.weight, whole.conv_in.weight * (1 - 0.01))
    toy.applied.clear()
    few = ("tsopt.num_inference_steps=1", "tsopt.num_samples=1", "tsopt.reference_steps=2", "timesteps=uniform")
    result = idc("tsopt", "recipe=run/recipe.json", *few, "hydra.run.dir=found")
    assert result.code == 0, result.err
    assert Cut("toy", {"share": 0.01}) in toy.applied
    assert Recipe.load("found").cut == recipe.cut


def test_nothing_that_holds_keeps_the_whole_model(search):
    result = search("+prune.shares=[0.9]")
    assert result.code == 0, result.err
    assert json.loads(Path("run/recipe.json").read_text())["cut"] is None
    assert "no level can go: 90% less misses a threshold" in result.out


def test_a_bound_above_the_full_depth_leaves_the_whole_model(idc, random_model):
    """Alg. 1 has nothing to choose from then, and says so."""
    small = ("depth_search.num_samples=1", "depth_search.num_inference_steps=2", "num_inference_steps=2")
    common = (f"model.path={random_model('ip2p')}", *small, "depth_search.min_depth=20", "hydra.run.dir=run")
    result = idc("depth-search", *common)
    assert result.code == 0, result.err
    assert json.loads(Path("run/recipe.json").read_text())["cut"] is None
    assert "nothing smaller" in result.out


def test_a_method_without_depths_refuses_the_key_depth(search):
    assert only_line(search("depth=9")).startswith("idc: error: depth=9: prune=toy has no depths")


# Parameters.


def test_parameters_are_bound(search, toy):
    assert search("+prune.shares=[0.02]", "+prune.order=down").code == 0
    assert toy.parameters == [([0.02], "down")]
    assert json.loads(Path("run/recipe.json").read_text())["cut"] == {"method": "toy", "share": 0.02}


def test_wrong_parameters_are_one_line_before_anything_is_loaded(search, monkeypatch):
    def loaded(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(load, "_load_folders", loaded)
    line = only_line(search("+prune.share=0.5", "+prune.shares=0.5", "+prune.order=sideways"))
    assert line.startswith("idc: error: unknown key prune.share; did you mean 'shares'?; ")
    assert "prune.shares must be a list of float, got 0.5" in line
    assert "prune.order must be one of up, down, got 'sideways'" in line


# What a method asks for.


def test_a_method_that_asks_for_batches_and_a_loss_gets_them(search, toy, random_model):
    """The loss is the one that fine-tuning would take, of whatever components the method hands in."""
    found = {}

    def candidates(components, request):
        toy.requests.append(request)
        batches = list(request.batches())
        found["batches"] = batches, list(request.batches())
        whole = request.loss(components, batches[0])
        student = copy.deepcopy(components["unet"]).requires_grad_(True)
        loss = request.loss({**components, "unet": student}, batches[0])
        found["loss"] = whole.item(), loss.item(), request.loss({}, batches[0]).item()
        assert not whole.requires_grad
        loss.backward()
        found["gradients"] = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
        return [Cut("toy")]

    toy.candidates = candidates
    result = search("depth_search.num_samples=3", "batch_size=2", needs=("batches", "loss"))
    assert result.code == 0, result.err
    (request,) = toy.requests
    assert request.seed == 0

    first, second = found["batches"]
    assert [batch.numbers for batch in first] == [[0, 1], [2]] == [batch.numbers for batch in second]
    for one, other in zip(first, second, strict=True):
        for example, again in zip(one.examples, other.examples, strict=True):
            assert torch.equal(example.image, again.image) and example.prompt == again.prompt
            assert example.target is not None
    seen = Recipe.load("run").searched_photographs()
    assert {example.photo for batch in first for example in batch.examples} <= seen

    assert found["loss"][0] == found["loss"][2] == pytest.approx(found["loss"][1], rel=1e-5)
    assert found["gradients"] and all(gradient.isfinite().all() for gradient in found["gradients"])
    assert sum(gradient.abs().sum() for gradient in found["gradients"]) > 0

    source = {"name": "random", "path": str(random_model("ip2p"))}
    pipeline = load_source("ip2p", source, device="cpu", dtype="float32").pipeline
    module = training.Finetuning(
        Task(),
        pipeline,
        None,
        trained=("unet",),
        identity={},
        weights={"task": 1.0, "output": 0.0, "features": 0.0},
        timesteps=range(1000),
        conditioning_dropout=0.0,
        seed=0,
        optimizer=torch.optim.SGD,
        schedule="constant",
        warmup_steps=0,
        preview=lambda step: {},
    )
    trained = module.losses(TrainingBatch(first[0].numbers, first[0].examples, {}))["task"]
    assert trained.item() == pytest.approx(found["loss"][0], rel=1e-5)


def test_a_method_gets_what_it_asks_for_and_nothing_else(search, toy):
    assert search("+prune.shares=[0.01]", needs=("batches",)).code == 0
    (request,) = toy.requests
    assert request.batches is not None and request.loss is None


def test_nothing_is_prepared_for_a_method_that_asks_for_nothing(search, monkeypatch):
    def prepared(*_, **__):
        raise AssertionError("calibration was prepared")

    monkeypatch.setattr(calibration.Calibration, "__init__", prepared)
    seen, original = [], depth_skip.candidates

    def candidates(components, request, *, fill, stub_kernel):
        seen.append(request)
        return original(components, request, fill=fill, stub_kernel=stub_kernel)

    monkeypatch.setattr(depth_skip, "candidates", candidates)
    result = search("depth_search.min_depth=13", "prune=depth_skip")
    assert result.code == 0, result.err
    assert [(request.batches, request.loss) for request in seen] == [(None, None)]


def test_what_a_task_cannot_give_is_said_before_anything_is_loaded(search, monkeypatch):
    def loaded(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(load, "_load_folders", loaded)
    monkeypatch.setattr(registry.load("task", "ip2p").Task, "cannot_give", ("loss",))
    line = only_line(search(needs=("batches", "loss")))
    assert line == "idc: error: prune=toy asks for a loss, which task=ip2p cannot give; choose another"


# The walk itself.


class Walk:
    def __init__(self, *passing):
        self.passing, self.asked = passing, []

    def __call__(self, candidate):
        self.asked.append(candidate)
        return candidate in self.passing


CANDIDATES = ["whole", "three quarters", "half", "quarter"]


@pytest.mark.parametrize(
    ("passing", "chosen", "asked"),
    [
        (CANDIDATES, "quarter", 4),
        (CANDIDATES[:3], "half", 4),
        (CANDIDATES[:1], "whole", 2),
        (["whole", "half", "quarter"], "whole", 2),  # what holds again later is not looked at
    ],
)
def test_the_search_walks_whatever_the_candidates_are(passing, chosen, asked):
    walk = Walk(*passing)
    found, probes = cut_search(walk, CANDIDATES)
    assert found == chosen
    assert walk.asked == CANDIDATES[:asked]
    assert probes == [(name, name in passing) for name in CANDIDATES[:asked]]
    whole = Walk(*passing)
    assert cut_search(whole, CANDIDATES, whole_curve=True)[0] == chosen
    assert whole.asked == CANDIDATES


def test_a_whole_model_that_fails_ends_the_search():
    walk = Walk("half")
    with pytest.raises(FullModelFailsError, match="whole model"):
        cut_search(walk, CANDIDATES, whole_curve=True)
    assert walk.asked == ["whole"]
