"""Models whose noise schedule has another length than 1000 timesteps, through every stage that lists or draws them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from idcompress import Recipe, gamma_timesteps
from idcompress.adapters import training_batch
from idcompress.bench.bench import Bench

SMALL = ("num_inference_steps=3", "evaluate.metrics=[psnr]")


def uniform(steps, length):
    return gamma_timesteps(1.0, steps, num_train_timesteps=length)


def succeed(idc, *arguments):
    result = idc(*arguments)
    assert result.code == 0, result.err
    return result


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize(("task", "length"), [("ip2p", 100), ("stablesr", 4000)])
def test_a_search_samples_the_models_own_timesteps(idc, model_of_length, task, length):
    """Reference, first list and the lists of the search run from the model's last timestep, at uniform steps to 0."""
    arguments = (f"task={task}", f"model.path={model_of_length(task, length)}", "recipe=none", *SMALL)
    seen = []
    images = Bench.images

    def watched(self, pipeline, plan, *rest):
        seen.append(list(plan.timesteps))
        return images(self, pipeline, plan, *rest)

    search = ("tsopt.num_inference_steps=2", "tsopt.num_samples=1", "tsopt.reference_steps=5", "timesteps=quadratic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "images", watched)
        succeed(idc, "tsopt", *arguments, *search, "hydra.run.dir=found")
    quadratic = [length - 1, (length - 1) // 4]
    assert seen == [uniform(5, length), uniform(2, length), quadratic]
    assert Recipe.load("found").timesteps == tuple(quadratic)
    assert [row["timesteps"] for row in rows("found/trace.jsonl")] == seen[1:]


def test_a_greedy_search_stays_within_the_schedule(idc, model_of_length):
    length = 250
    search = ("tsopt.num_inference_steps=3", "tsopt.num_samples=1", "tsopt.reference_steps=4")
    arguments = (f"model.path={model_of_length('ip2p', length)}", "recipe=none", "depth=2", *SMALL, *search)
    succeed(idc, "tsopt", "task=ip2p", *arguments, "timesteps=gamma", "hydra.run.dir=found")
    lists = {row["gamma"]: row["timesteps"] for row in rows("found/trace.jsonl") if "gamma" in row}
    assert len(lists) > 2
    for gamma, timesteps in lists.items():
        assert timesteps == gamma_timesteps(gamma, 3, num_train_timesteps=length)


def draw_of_training(idc, folder, monkeypatch, *arguments):
    """The timesteps that a fine-tuning of one update draws, 64 of them."""
    drawn = []
    add_noise = training_batch.add_noise

    def watched(latents, noise, timesteps, process):
        drawn.extend(timesteps.tolist())
        return add_noise(latents, noise, timesteps, process)

    monkeypatch.setattr(training_batch, "add_noise", watched)
    small = ("trainer.max_steps=1", "trainer.val_check_interval=1", "finetune.warmup_steps=0", "finetune.batch_size=64")
    watching = ("finetune.num_samples=1", "finetune.num_inference_steps=2", "loss=task", "depth=2", "recipe=none")
    succeed(idc, "finetune", "task=ip2p", f"model.path={folder}", *small, *watching, *arguments, "hydra.run.dir=tuned")
    return drawn


@pytest.mark.parametrize("length", [100, 4000])
def test_training_draws_from_the_whole_schedule(idc, model_of_length, monkeypatch, length):
    drawn = draw_of_training(idc, model_of_length("ip2p", length), monkeypatch)
    assert len(drawn) == 64
    assert max(drawn) < length
    assert max(drawn) > 0.9 * length and min(drawn) < 0.1 * length


def test_training_at_the_steps_of_inference(idc, model_of_length, monkeypatch):
    own = ("finetune.timesteps=inference", "num_inference_steps=3")
    drawn = draw_of_training(idc, model_of_length("ip2p", 250), monkeypatch, *own)
    assert {*drawn} == {249, 124, 0}


def test_a_picture_is_translated_over_the_models_own_timesteps(idc, model_of_length, tmp_path):
    Image.effect_noise((40, 32), 50).convert("RGB").save(tmp_path / "photo.png")
    folder = model_of_length("ip2p", 250)
    arguments = (f"image={tmp_path / 'photo.png'}", "recipe=none", "num_inference_steps=3", "output.path=out")
    succeed(idc, "translate", "task=ip2p", f"model.path={folder}", *arguments, "translate.compare=true")
    assert json.loads(Path("out/translate.json").read_text())["timesteps"] == [249, 124, 0]


def test_more_steps_than_the_model_has_timesteps_is_one_clear_line(idc, model_of_length):
    folder = model_of_length("ip2p", 100)
    result = idc("tsopt", f"model.path={folder}", "task=ip2p", "recipe=none", "tsopt.reference_steps=101")
    assert result.code == 2
    assert result.err.splitlines() == ["idc: error: this model has 100 timesteps; want 1 to 100 steps, got 101"]
