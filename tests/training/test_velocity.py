"""The training step on networks that predict the velocity, of every task: today's embedded models are of this kind."""

import pytest
import torch
from test_training import TASK, batch_of, module_of

from idcompress import registry
from idcompress.adapters.pipeline import with_components
from idcompress.sources.load import load_source
from idcompress.sources.model import Model

TASKS = registry.names("task")
TEACHER = {"task": 0.0, "output": 1.0, "features": 1.0}
ALL = {"task": 1.0, "output": 1.0, "features": 1.0}
RATE = 1e-3


@pytest.fixture(scope="module")
def model(random_model):
    """(task, prediction type) -> its random pipeline as a Model; the networks are loaded once."""
    loaded = {}

    def get(name, prediction_type="v_prediction"):
        if name not in loaded:
            source = {"name": "random", "path": str(random_model(name))}
            loaded[name] = load_source(name, source, device="cpu", dtype="float32", prune="depth_skip")
        found = loaded[name]
        config = dict(found.pipeline.scheduler.config) | {"prediction_type": prediction_type}
        pipeline = with_components(found.pipeline, {"scheduler": type(found.pipeline.scheduler).from_config(config)})
        return Model(pipeline, found.source, found.prune)

    return get


def watch(module, monkeypatch, answer=None):
    """Record what a training step makes of its batch; `answer` says what the network puts out in place of its own."""
    seen, task = {}, module.task
    encode, predict = task.encode_training, task.predict

    def encode_training(*arguments):
        seen["clean"], conditioning = encode(*arguments)
        return seen["clean"], conditioning

    def answered(pipeline, sample, timesteps, conditioning):
        seen["sample"], seen["level"] = sample, module.process.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return predict(pipeline, sample, timesteps, conditioning) if answer is None else answer(seen)

    monkeypatch.setattr(task, "encode_training", encode_training)
    monkeypatch.setattr(task, "predict", answered)
    return seen


def noise_of(seen):
    return (seen["sample"] - seen["level"].sqrt() * seen["clean"]) / (1 - seen["level"]).sqrt()


def velocity_of(seen):
    return seen["level"].sqrt() * noise_of(seen) - (1 - seen["level"]).sqrt() * seen["clean"]


@pytest.mark.parametrize("name", TASKS)
def test_a_network_that_answers_with_the_velocity_has_no_loss(name, model, monkeypatch):
    """Neither its negative nor the noise would do."""
    found = {}
    for word, answer in (("right", velocity_of), ("negative", lambda s: -velocity_of(s)), ("noise", noise_of)):
        module = module_of(name, model(name), 2, TASK)
        watch(module, monkeypatch, answer)
        found[word] = module.losses(batch_of(name, size=2))["task"].item()
    assert found["right"] < 1e-9
    assert min(found["negative"], found["noise"]) > 0.01


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_of_a_silent_network_is_the_velocitys_mean_square(name, model, monkeypatch):
    """A known state: the last convolution is zero, so that the network puts out nothing."""
    module = module_of(name, model(name), 2, TASK)
    seen = watch(module, monkeypatch)
    torch.nn.init.zeros_(module.components["unet"].conv_out.weight)
    torch.nn.init.zeros_(module.components["unet"].conv_out.bias)
    loss = module.losses(batch_of(name, size=2))["task"].item()
    assert loss == pytest.approx(velocity_of(seen).square().mean().item(), rel=1e-4)
    assert loss != pytest.approx(noise_of(seen).square().mean().item(), rel=1e-2)


@pytest.mark.parametrize("weights", [TASK, TEACHER], ids=["task", "distill"])
@pytest.mark.parametrize("name", TASKS)
def test_one_update_lowers_the_loss(name, weights, model):
    module, batch = module_of(name, model(name), 2, weights), batch_of(name, size=2)

    def loss():
        return sum(weights[term] * value for term, value in module.losses(batch).items())

    optimizer = torch.optim.SGD(module.components.parameters(), lr=RATE)
    before = loss()
    before.backward()
    slope = sum(p.grad.square().sum().item() for p in module.components.parameters() if p.grad is not None)
    optimizer.step()
    with torch.no_grad():
        fallen = before.item() - loss().item()
    # The loss falls by about what its gradient says: the rate times the gradient's square.
    assert 0.5 * RATE * slope < fallen < 1.5 * RATE * slope


@pytest.mark.parametrize("name", TASKS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn_of_it(name, model):
    module = module_of(name, model(name), model(name).full_depth, ALL)
    terms = module.losses(batch_of(name, size=2))
    assert terms["output"] < 1e-10 and terms["features"] < 1e-10  # kernels differ with and without gradients
    assert terms["task"] > 0.01


@pytest.mark.parametrize("name", TASKS)
def test_distillation_does_not_ask_what_is_predicted(name, model):
    """Student and teacher are compared as they are: only the task's own term knows the kind of prediction."""
    losses = []
    for prediction_type in ("epsilon", "v_prediction"):
        module = module_of(name, model(name, prediction_type), 5, ALL)
        with torch.no_grad():
            losses.append({term: value.item() for term, value in module.losses(batch_of(name, size=2)).items()})
    noise, velocity = losses
    assert (noise["output"], noise["features"]) == (velocity["output"], velocity["features"])
    assert noise["task"] != pytest.approx(velocity["task"], rel=1e-3)
