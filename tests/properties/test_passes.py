"""What is billed is what is computed: network passes and multiply-accumulates of every task, sampler and guidance."""

import collections
import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from idcompress import registry
from idcompress.bench.bench import Bench
from idcompress.bench.costs import costs
from idcompress.bench.translate import translate
from idcompress.core.guidance import num_branches
from idcompress.core.plan import Plan, Step
from idcompress.costs.macs import Macs
from idcompress.sources.load import load_source
from idcompress.types import Example

SCALES = {
    "ip2p": [
        {"guidance_scale": text, "image_guidance_scale": image}
        for text, image in itertools.product((1.0, 7.5), (1.0, 1.5))
    ],
    "controlnet": [{"guidance_scale": 1.0}, {"guidance_scale": 7.5}],
    "stablesr": [{}],
    "inpaint": [{"guidance_scale": 1.0}, {"guidance_scale": 7.5}],
    "high_frequency": [{}],
}
CASES = [(task, guidance) for task in registry.names("task") for guidance in SCALES[task]]
NAMES = ["-".join(map(str, (task, *guidance.values()))) for task, guidance in CASES]
TIMESTEPS = [900, 500, 500, 20]  # with a repeat
MANY = 3  # steps of the original
MOST = [(task, SCALES[task][-1]) for task in registry.names("task")]


@pytest.fixture(scope="module")
def bench(random_model):
    """A bench of two images of a task; its model is loaded once."""
    models = {}

    def make(task):
        if task not in models:
            source = {"name": "random", "path": str(random_model(task))}
            models[task] = load_source(task, source, device="cpu", dtype="float32", prune="depth_skip")
        px = 64 if task == "stablesr" else 32
        images = torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(0))
        examples = [Example(i, f"{i}", "", image, "make it darker", condition=image) for i, image in enumerate(images)]
        return Bench(registry.load("task", task).Task(), models[task], examples, {})

    return make


def count_rows(bench, pipeline, plan):
    """Translate both images; rows of each network's calls, by its position among the task's networks."""
    rows = collections.Counter()
    networks = bench.task.networks(pipeline)

    def counter(number):
        def count(network, arguments, keywords):
            first = arguments[0] if arguments else next(iter(keywords.values()))
            rows[number] += len(first)

        return count

    hooks = [n.register_forward_pre_hook(counter(i), with_kwargs=True) for i, n in enumerate(networks)]
    try:
        translate(bench.task, pipeline, bench.examples, plan)
    finally:
        for hook in hooks:
            hook.remove()
    return [rows[number] for number in range(len(networks))]


def check_the_bill(bench, monkeypatch, task, guidance, sampler):
    """The passes of every network, by the full model and by a cut one, for each of two images."""
    monkeypatch.setattr(Macs, "measure", lambda *_: {"gmacs": 1.0})  # counted below, and slow
    tested = bench(task)
    full, cut = tested.model.pipeline, tested.model.at(tested.model.chosen(2))
    plan, original = (
        Plan.over(timesteps, sampler=sampler, guidance=guidance) for timesteps in (TIMESTEPS, tested.uniform(MANY))
    )
    billed = costs(tested, cut, plan, original, latency=False)["network_calls"]
    for pipeline, sampled, calls in ((cut, plan, billed["compressed"]), (full, original, billed["original"])):
        rows = count_rows(tested, pipeline, sampled)
        assert rows == [len(tested.examples) * calls] * len(tested.task.networks(pipeline))


@pytest.mark.parametrize(("task", "guidance"), CASES, ids=NAMES)
def test_the_passes_billed_are_those_computed(bench, monkeypatch, task, guidance):
    check_the_bill(bench, monkeypatch, task, guidance, "ddim")


@pytest.mark.parametrize("sampler", ["ancestral", "dpm_solver"])
@pytest.mark.parametrize(("task", "guidance"), MOST, ids=[task for task, _ in MOST])
def test_every_sampler_is_billed_what_it_computes(bench, monkeypatch, task, guidance, sampler):
    """DPM-Solver++ passes over repeated timesteps without a call of the network."""
    check_the_bill(bench, monkeypatch, task, guidance, sampler)


@pytest.mark.parametrize(("task", "guidance"), MOST, ids=[task for task, _ in MOST])
def test_the_multiply_accumulates_billed_are_those_computed(bench, task, guidance):
    """One step of one image, attention products included: those of a pass times the passes of a step."""
    tested = bench(task)
    cut = tested.model.at(tested.model.chosen(2))
    example, noise = tested.examples[:1], torch.zeros(1, 4, 8, 8)
    cost = Macs(sample_size=8, encoder_tokens=tested.task.encoder_tokens(cut))
    billed = num_branches(guidance) * cost.measure(tested.task.networks(cut))["gmacs_with_attention"]
    with torch.no_grad():
        denoise = tested.task.denoise(cut, tested.task.encode(cut, example), guidance)
        with FlopCounterMode(display=False) as counter:
            denoise(noise, Step(500), None)
    assert billed == pytest.approx(counter.get_total_flops() / 2e9, rel=1e-6)
