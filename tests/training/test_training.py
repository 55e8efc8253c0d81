"""The training step: what it learns, what it compares, what it draws; on random networks of the real topology."""

import collections
import copy

import pytest
import torch

from idcompress import registry
from idcompress.adapters import training, training_batch
from idcompress.adapters.pipeline import with_copies
from idcompress.errors import IdcError
from idcompress.sources.model import Model
from idcompress.types import Example

TASKS = ["ip2p", "controlnet", "stablesr"]
NO_DROPOUT = 0.0
TASK = {"task": 1.0, "output": 0.0, "features": 0.0}
DISTILL = {"task": 1.0, "output": 1.0, "features": 1.0}


@pytest.fixture(scope="module")
def model(random_model):
    """task -> its random pipeline as a Model, loaded once."""
    loaded = {}

    def get(task):
        if task not in loaded:
            from idcompress.sources.load import load_source

            source = {"name": "random", "path": str(random_model(task))}
            loaded[task] = load_source(task, source, device="cpu", dtype="float32", prune="depth_skip")
        return loaded[task]

    return get


def task_of(name):
    return registry.load("task", name).Task()


def batch_of(name, size=4):
    px = 64 if name == "stablesr" else 32
    images = torch.rand(size, 3, px, px, generator=torch.Generator().manual_seed(1))
    examples = [
        Example(
            index=i,
            name=f"image {i}",
            photo="",
            image=image,
            prompt="" if name == "stablesr" else "make it darker",
            target=image.flip(-1),
            condition=(image > 0.5).float(),
        )
        for i, image in enumerate(images)
    ]
    return training.TrainingBatch(list(range(size)), examples, {})


def module_of(name, model: Model, depth=5, weights=TASK, *, lr=2e-3, dropout=NO_DROPOUT, preview=lambda step: {}):
    task = task_of(name)
    student = with_copies(model.at(None if depth is None else model.chosen(depth)), task.trained)
    return training.Finetuning(
        task,
        student,
        model.pipeline if weights["output"] or weights["features"] else None,
        trained=task.trained,
        identity={"task": name, "depth": depth},
        weights=weights,
        timesteps=range(1000),
        conditioning_dropout=dropout,
        seed=0,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
        schedule="constant",
        warmup_steps=0,
        preview=preview,
    )


def capture_output(module, batch):
    """What the full model puts out for a batch."""
    made = []
    predict = type(module.task).predict

    def keep(self, pipeline, *arguments):
        made.append(predict(self, pipeline, *arguments))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(module.task), "predict", keep)
        module.losses(batch)
    return made[-1].detach()


def total(module, batch):
    return sum(module.weights[name] * term for name, term in module.losses(batch).items())


@pytest.mark.parametrize("weights", [TASK, DISTILL], ids=["task", "distill"])
@pytest.mark.parametrize("name", TASKS)
def test_the_loss_of_a_fixed_batch_falls_below_a_twentieth(name, weights, model, monkeypatch):
    """Noise and timesteps belong to the sample numbers, so the same numbers are the same problem."""
    module = module_of(name, model(name), depth=2, weights=weights, lr=5e-3)
    batch = batch_of(name, size=2)
    if weights is DISTILL:  # on data where the full model is right, so that the terms do not contradict each other
        with torch.no_grad():
            teacher = capture_output(module, batch)
        monkeypatch.setattr(training_batch, "denoising_target", lambda *_: teacher)
    optimizer = module._optimizer(module.components.parameters())
    start = total(module, batch).item()
    for _ in range(300):
        loss = total(module, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.05 * start:
            return
    pytest.fail(f"{start:.4f} fell to {loss.item():.4f} only")


@pytest.mark.parametrize("name", TASKS)
def test_distillation_terms_are_zero_when_the_student_is_the_teacher(name, model):
    module = module_of(name, model(name), depth=model(name).full_depth, weights=DISTILL)
    terms = module.losses(batch_of(name))
    assert terms["output"] < 1e-10  # other kernels with and without gradients
    assert terms["features"] < 1e-10
    assert terms["task"] > 0


def test_matched_blocks_are_those_that_end_where_the_full_ones_do(model):
    full = model("ip2p").pipeline.unet
    everything = [f"{side}_blocks.{i}" for side in ("down", "up") for i in range(4)]
    assert training.matched_blocks(full, full) == everything  # BK-SDM's eight
    expected = {
        12: everything,  # only the middle block went
        11: [n for n in everything if n != "down_blocks.3"],
        9: ["down_blocks.0", "down_blocks.1", "up_blocks.1", "up_blocks.2", "up_blocks.3"],
        8: ["down_blocks.0", "down_blocks.1", "up_blocks.1", "up_blocks.2", "up_blocks.3"],
        1: ["up_blocks.3"],
    }
    for depth, names in expected.items():
        assert sorted(training.matched_blocks(model("ip2p").at(model("ip2p").chosen(depth)).unet, full)) == sorted(
            names
        ), depth


def test_the_full_model_and_frozen_parts_stay_as_they_are(model):
    """Only the student's components are registered, averaged and trained; the teacher's file never changes."""
    before = {k: v.clone() for k, v in model("ip2p").pipeline.unet.state_dict().items()}
    module = module_of("ip2p", model("ip2p"), weights=DISTILL)
    assert {name.split(".")[1] for name, _ in module.named_parameters()} == {"unet"}
    loss = total(module, batch_of("ip2p"))
    loss.backward()
    module._optimizer(module.components.parameters()).step()
    after = model("ip2p").pipeline.unet.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert copy.deepcopy(module).frozen is module.frozen


def test_zero_hidden_entries_get_no_gradient(model):
    """The zeros at the cut keep what reads them still: a folder exported later is the model that was trained."""
    module = module_of("ip2p", model("ip2p"), depth=9)
    total(module, batch_of("ip2p")).backward()
    resnet = next(r for block in module.components["unet"].up_blocks for r in block.resnets)
    hidden = module.components["unet"].mid_block.hidden_channels
    assert resnet.norm1.weight.grad[:hidden].abs().max() == 0
    assert resnet.conv_shortcut.weight.grad[:, :hidden].abs().max() == 0
    assert resnet.norm1.weight.grad[hidden:].abs().max() > 0


def generators(count, start=0):
    return [torch.Generator().manual_seed(start + i) for i in range(count)]


def test_instructions_and_images_are_dropped_in_three_exclusive_cases(model):
    pipeline, task, p = model("ip2p").pipeline, task_of("ip2p"), 0.05
    examples = batch_of("ip2p", size=1).examples
    conditioning = {key: value.expand(2000, *value.shape[1:]) for key, value in task.encode(pipeline, examples).items()}
    monkey = type("Task", (type(task),), {"encode": lambda self, *_: conditioning})()
    import idcompress.tasks.ip2p as ip2p

    drawn = ip2p.draw_latents
    ip2p.draw_latents = lambda *_: torch.zeros(2000, 4, 1, 1)
    try:
        _, made = monkey.encode_training(pipeline, examples * 2000, generators(2000), p)
    finally:
        ip2p.draw_latents = drawn
    no_text = [torch.equal(text, conditioning["null"][0]) for text in made["text"]]
    no_image = [bool((image == 0).all()) for image in made["image"]]
    cases = collections.Counter(zip(no_text, no_image, strict=True))
    for case in [(True, False), (False, True), (True, True)]:
        assert abs(cases[case] / 2000 - p) < 0.015, cases
    assert abs(cases[False, False] / 2000 - (1 - 3 * p)) < 0.03


def test_captions_are_dropped_and_edges_are_not(model):
    pipeline, task = model("controlnet").pipeline, task_of("controlnet")
    examples = batch_of("controlnet", size=1).examples * 64
    _, made = task.encode_training(pipeline, examples, generators(64), 0.5)
    null = task.encode(pipeline, examples[:1])["null"][0]
    dropped = sum(torch.equal(text, null) for text in made["text"])
    assert 16 < dropped < 48
    assert torch.equal(made["condition"][0], made["condition"][-1])
    assert made["condition"].abs().sum() > 0


def test_ip2p_wants_true_results(model):
    import dataclasses

    examples = [dataclasses.replace(e, target=None) for e in batch_of("ip2p").examples]
    with pytest.raises(IdcError, match=r"true result of 'make it darker'.*data=instruct_pix2pix"):
        task_of("ip2p").encode_training(model("ip2p").pipeline, examples, generators(4), 0.05)


def test_a_sample_is_the_same_in_any_batch(model):
    """Two halves of a batch have the loss of the whole: devices and accumulation change nothing."""
    module = module_of("ip2p", model("ip2p"), dropout=0.05)
    whole = batch_of("ip2p", size=4)
    halves = [
        training.TrainingBatch(whole.numbers[part], whole.examples[part], {}) for part in (slice(0, 2), slice(2, 4))
    ]
    with torch.no_grad():
        split = sum(total(module, half) for half in halves) / 2
        torch.testing.assert_close(total(module, whole), split, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_no_number_stops_and_says_what_to_lower(model):
    module = module_of("ip2p", model("ip2p"))
    with torch.no_grad():
        next(module.components.parameters()).fill_(float("nan"))
    module._trainer = type("T", (), {"global_step": 7})()
    with pytest.raises(IdcError, match=r"loss is nan at step 7.*finetune.optimizer.lr"):
        module.training_step(batch_of("ip2p"), 0)


@pytest.mark.parametrize(("key", "value"), [("task", "controlnet"), ("depth", 8)])
def test_a_checkpoint_of_something_else_is_refused_with_both_named(key, value):
    wanted = {"task": "ip2p", "depth": 5}
    checkpoint = {"hyper_parameters": {"identity": wanted | {key: value}}, "state_dict": {}, "global_step": 3}
    with pytest.raises(IdcError, match=f"last.ckpt is of {key}={value}, this run is of {key}={wanted[key]}"):
        training.check_identity(checkpoint, wanted, "last.ckpt")
    with pytest.raises(IdcError, match="not a checkpoint"):
        training.check_identity({}, wanted, "last.ckpt")


def test_more_than_one_unreadable_photograph_in_a_hundred_stops():
    said = []
    callback = training.UnreadableImages(200, said.append)
    batch = batch_of("ip2p", size=1)

    def see(**unreadable):
        callback.on_train_batch_start(None, None, training.TrainingBatch([0], batch.examples, unreadable), 0)

    see(cat="damaged")
    see(cat="damaged")
    see(dog="empty")
    assert said == ["cat is left out: damaged", "dog is left out: empty"]
    with pytest.raises(IdcError, match="3 of 200 photographs cannot be read, more than 1 %: cat, cow, dog"):
        see(cow="gone")
    again = training.UnreadableImages(200, said.append)
    again.load_state_dict(callback.state_dict())
    assert again.found == callback.found


def test_averages_warm_up():
    """After few updates the average is near the weights, not at its start."""
    average = training.average_weights(0.999)
    function = average._kwargs["avg_fn"]
    moved = function(torch.zeros(1), torch.ones(1), torch.tensor(1))
    assert torch.allclose(moved, torch.tensor([1 - 2 / 11]))
    assert torch.allclose(function(torch.zeros(1), torch.ones(1), torch.tensor(10**6)), torch.tensor([0.001]))


def test_lightning_and_sharding_leave_a_batch_alone():
    """Under FSDP all three walk through what a training step is given; pixels must not be rounded to bfloat16."""
    from lightning.pytorch.plugins.precision import FSDPPrecision
    from lightning_utilities.core.apply_func import apply_to_collection
    from torch.distributed.utils import _apply_to_tensors

    batch = batch_of("ip2p", 2)
    images = [example.image.clone() for example in batch.examples]
    halved = [
        apply_to_collection(batch, torch.Tensor, lambda tensor: tensor.half()),
        FSDPPrecision("bf16-mixed").convert_input(batch),
        _apply_to_tensors(lambda tensor: tensor.half(), batch),
    ]
    for passed in halved:
        assert passed.numbers == batch.numbers
        for example, image in zip(passed.examples, images, strict=True):
            assert example.image.dtype == torch.float32
            assert torch.equal(example.image, image)
