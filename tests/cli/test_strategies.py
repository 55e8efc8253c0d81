"""A timestep strategy that asks for a score, a teacher and a denoiser: what it gets, and what it cannot have."""

import json
from pathlib import Path

import pytest
import torch

from idcompress import Recipe, gamma_timesteps, registry
from idcompress.bench.bench import Bench
from idcompress.core.plan import Step
from idcompress.metrics import psnr
from idcompress.sources import load
from idcompress.types import Schedule

LISTS = ([999, 400], [999, 700])


class Toy:
    """Scores two lists and takes the better one; keeps what it was handed.

    Attributes:
        scores: of the two lists.
        teacher: the many-step run.
        gradients: of the mean square of each batch's output, by its start.
    """

    def timesteps(self, request):
        self.request, best = request, LISTS[0]
        if request.score is not None:
            self.scores = [request.score(timesteps, tried=i) for i, timesteps in enumerate(LISTS)]
            best = max(zip(self.scores, LISTS, strict=True))[1]
        if request.teacher is not None:
            self.teacher = request.teacher()
        if request.denoiser is not None:
            self.gradients, self.finals = [], []
            for denoise, start, final in request.denoiser():
                leaf = start.clone().requires_grad_()
                denoise(leaf, Step(700), None)[0].square().mean().backward()
                self.gradients.append(leaf.grad)
                self.finals.append(final)
        return Schedule(best)


@pytest.fixture
def toy():
    return Toy()


@pytest.fixture
def search(idc, register, toy, random_model):
    """Run `idc tsopt timesteps=toy`; what the strategy needs, then the command line."""

    def run(*arguments, needs=(), command="tsopt"):
        flags = register("timesteps", "toy", timesteps=toy.timesteps, SOURCE="", **({"NEEDS": needs} if needs else {}))
        small = ("tsopt.num_inference_steps=2", "tsopt.num_samples=1", "tsopt.reference_steps=3")
        small += ("guidance_scale=1", "image_guidance_scale=1")
        common = ("timesteps=toy", f"model.path={random_model('ip2p')}", "recipe=none", *small, "hydra.run.dir=run")
        return idc(command, *flags, *common, *arguments)

    return run


def trace():
    return [json.loads(line) for line in Path("run/trace.jsonl").read_text().splitlines()]


def test_all_that_a_strategy_may_ask_for(search, toy):
    """The score of another metric than PSNR, the reference run, and a network that gradients flow through."""
    result = search("tsopt.metric=ssim", "tsopt.num_samples=2", needs=("score", "teacher", "denoiser"))
    assert result.code == 0, result.err

    uniform, *tried = trace()
    assert uniform["timesteps"] == [999, 0]
    assert [(row["timesteps"], row["tried"]) for row in tried] == [(LISTS[0], 0), (LISTS[1], 1)]
    assert [row["ssim"] for row in tried] == toy.scores and toy.scores[0] != toy.scores[1]
    assert all("psnr" not in row for row in tried)
    better = LISTS[toy.scores.index(max(toy.scores))]
    assert Recipe.load("run").timesteps == tuple(better)
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["metric"] == "ssim"
    assert metrics["searches"][0]["ssim"] == max(toy.scores)

    assert toy.teacher.timesteps == tuple(gamma_timesteps(1.0, 3))
    assert toy.teacher.samples.shape == toy.teacher.originals.shape == (3, 2, 4, 8, 8)
    assert torch.equal(torch.cat(toy.finals), toy.teacher.final)
    assert len(toy.gradients) == 2  # a batch each on the CPU
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in toy.gradients)


def test_a_score_is_higher_where_a_metric_is_lower(search, toy, register):
    """Also where no known metric is asked: the better list is the one with the lower value then."""

    class Metric(psnr.Metric):
        higher_is_better = False

    register("metric", "backwards", Metric=Metric)
    assert search("tsopt.metric=backwards", needs=("score",)).code == 0
    assert toy.scores == [-row["backwards"] for row in trace()[1:]]
    assert Recipe.load("run").timesteps == tuple(LISTS[toy.scores.index(max(toy.scores))])
    assert max(toy.scores) == -min(row["backwards"] for row in trace()[1:])


@pytest.mark.parametrize("needs", [(), ("teacher",)])
def test_a_strategy_gets_what_it_asks_for_and_nothing_else(search, toy, monkeypatch, needs):
    """Of a task that cannot give something else."""
    monkeypatch.setattr(registry.load("task", "ip2p").Task, "cannot_give", ("denoiser",))
    result = search(needs=needs)
    assert result.code == 0, result.err
    given = {name for name in ("score", "teacher", "denoiser") if getattr(toy.request, name) is not None}
    assert given == set(needs)


@pytest.mark.parametrize(("command", "need"), [("tsopt", "teacher"), ("compress", "denoiser")])
def test_what_a_task_cannot_give_is_said_before_anything_is_loaded_or_sampled(search, monkeypatch, command, need):
    def done(*_, **__):
        raise AssertionError("a model was loaded, or images were sampled")

    monkeypatch.setattr(load, "_load_folders", done)
    monkeypatch.setattr(Bench, "images", done)
    monkeypatch.setattr(registry.load("task", "ip2p").Task, "cannot_give", (need,))
    result = search(needs=("score", "teacher", "denoiser"), command=command)
    assert result.code == 2
    wanted = f"idc: error: timesteps=toy asks for a {need}, which task=ip2p cannot give; choose another"
    assert result.err.splitlines() == [wanted]
