"""Numbers fitted over a bench's examples: on which of them, to what, and at what cost."""

import dataclasses

import pytest
import torch

from idcompress import registry
from idcompress.bench import bench as bench_module
from idcompress.bench import references
from idcompress.bench.bench import Bench
from idcompress.bench.fitting import Lists
from idcompress.core.fit import FitSettings
from idcompress.core.plan import Plan
from idcompress.errors import IdcError
from idcompress.sources.load import load_source
from idcompress.types import Example

GUIDANCE = {
    "ip2p": {"guidance_scale": 2.0, "image_guidance_scale": 1.0},
    "controlnet": {"guidance_scale": 2.0},
    "stablesr": {},
}
TIMESTEPS = [999, 500, 100]


class Counted(Bench):
    """A bench that counts the calls of the networks, by images."""

    def calls(self, monkeypatch):
        count, own = [0], self.task.denoise

        def denoise(*arguments):
            inner = own(*arguments)

            def call(sample, step, cache):
                count[0] += len(sample)
                return inner(sample, step, cache)

            return call

        monkeypatch.setattr(self.task, "denoise", denoise)
        return count


@pytest.fixture(params=list(GUIDANCE))
def bench(request, random_model, tmp_path, monkeypatch):
    monkeypatch.setattr(references, "CACHE", tmp_path)
    task, px = request.param, 64 if request.param == "stablesr" else 32
    model = load_source(task, {"name": "random", "path": str(random_model(task))}, device="cpu", dtype="float32")
    images = torch.rand(5, 3, px, px, generator=torch.Generator().manual_seed(0))
    examples = [Example(i, f"{i}", "", image, "make it darker", condition=image) for i, image in enumerate(images)]
    return Counted(registry.load("task", task).Task(), model, examples, {})


def lists_of(bench, **settings):
    many = Plan.over([999, 700, 500, 300, 100, 0], guidance=GUIDANCE[bench.task.name])
    plan = Plan.over(TIMESTEPS, sampler="fitted", guidance=many.guidance)
    run = lambda: bench.reference_run(None, many, "")  # noqa: E731
    return Lists(bench, bench.model.pipeline, FitSettings(**settings), run), plan, many


def judged(lists, plan):
    return lists.bench.images_by_plan(lists.pipeline, lists.plans(plan), "", beginnings=lists.beginnings)


def test_every_image_is_judged_by_numbers_that_were_fitted_without_it(bench):
    lists, plan, _ = lists_of(bench)
    assert lists.folds == [[0, 2, 4], [1, 3]]
    found = judged(lists, plan)
    for fold, others in (lists.folds, lists.folds[::-1]):
        apart, _, many = lists_of(
            dataclasses.replace(bench, examples=[bench.examples[i] for i in others], _conditioning={}), folds=1
        )
        fitted = apart.finished(plan)
        assert torch.equal(found[fold], bench.images(bench.model.pipeline, fitted, "", fold))
    all_of_them = lists.finished(plan)
    assert all_of_them != fitted
    assert [len(row) for row in all_of_them.coefficients] == [2, 3, 4]
    closer, plain = (
        (bench.images(bench.model.pipeline, one, "") - bench.references(None, many, "")).square().mean()
        for one in (all_of_them, dataclasses.replace(plan, sampler="ddim"))
    )
    assert closer < plain


def test_one_image_cannot_be_kept_apart(bench):
    few = dataclasses.replace(bench, examples=bench.examples[:1], _conditioning={})
    lists, plan, _ = lists_of(few)
    assert torch.equal(judged(lists, plan), few.images(few.model.pipeline, lists.finished(plan), ""))


@pytest.mark.parametrize("bench", ["ip2p"], indirect=True)
def test_what_lists_have_in_common_is_sampled_once(bench, monkeypatch):
    lists, plan, many = lists_of(bench)
    count = bench.calls(monkeypatch)
    judged(lists, plan)
    reference = 5 * len(many)
    # the first step is one for all numbers; of the later ones there is one for each half's numbers
    assert count[0] == reference + 5 * (1 + 2 + 2)
    count[0] = 0
    first = judged(lists, plan)
    assert count[0] == 0
    other = dataclasses.replace(plan, steps=Plan.over([999, 500, 90]).steps)
    judged(lists, other)
    assert count[0] == 5 * 2  # the last step alone: the moves before it are the same
    assert torch.equal(first, judged(lists, plan))
    plain, count[0] = dataclasses.replace(plan, sampler="ddim"), 0
    by_ddim, _, _ = lists_of(bench)
    made = judged(by_ddim, plain)
    judged(by_ddim, dataclasses.replace(other, sampler="ddim"))
    assert count[0] == 5 * (3 + 1)
    assert torch.equal(made, bench.images(bench.model.pipeline, plain, ""))


@pytest.mark.parametrize("bench", ["ip2p"], indirect=True)
def test_the_reference_run_is_sampled_once_and_kept_with_its_images(bench, monkeypatch):
    _, _, many = lists_of(bench)
    images = bench.images(bench.model.pipeline, many, "")
    count = bench.calls(monkeypatch)
    run = bench.reference_run(None, many, "")
    assert torch.equal(bench.references(None, many, ""), images)
    again = bench.reference_run(None, many, "")
    assert count[0] == 5 * len(many)
    for name in ("samples", "originals", "final"):
        assert torch.equal(getattr(run, name), getattr(again, name))
        assert torch.equal(getattr(run, name), getattr(bench.teacher(bench.model.pipeline, many), name))


@pytest.mark.parametrize("bench", ["ip2p"], indirect=True)
def test_a_plan_without_numbers_is_not_sampled(bench):
    _, plan, _ = lists_of(bench)
    with pytest.raises(IdcError, match="sampler=fitted moves by numbers, and the plan has none; idc tsopt fits them"):
        bench.images(bench.model.pipeline, plan, "")
    assert bench_module.uniform_plan(bench.model.process, 4, sampler="fitted").sampler == "ddim"
