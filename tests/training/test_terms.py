"""The terms of the training step against numbers that are worked out by hand, on networks that put out numbers."""

import pytest
import torch
from torch import nn
from toy_training import Network, Pipeline, batch_of, training_of, update

from idcompress.core.ddim import ddim_sample
from idcompress.core.process import scaled_linear_alphas_cumprod

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def hand_made(down_layers=1):
    """Student and teacher put out 2 and 5, their two blocks 1 and 4, and 3 and 8."""
    return Pipeline(Network(2.0, 1.0, 4.0, down_layers)), Pipeline(Network(5.0, 3.0, 8.0))


def values(terms):
    return {name: term.item() for name, term in terms.items()}


def test_every_term_by_hand():
    """For images of 0 and 6 whose network predicts the clean image itself.

    The task's term is ((2 - 0)^2 + (2 - 6)^2) / 2, that of the output (2 - 5)^2, and that of the features is the sum
    (1 - 3)^2 + (4 - 8)^2 over the blocks.
    """
    module = training_of(*hand_made(), task=1.0, output=1.0, features=1.0)
    assert values(module.losses(batch_of(0.0, 6.0))) == {"task": 10.0, "output": 9.0, "features": 20.0}


@pytest.mark.parametrize("only", ["task", "output", "features"])
def test_a_term_of_weight_zero_is_not_there(only):
    module = training_of(*hand_made(), **{only: 1.0})
    assert list(module.losses(batch_of(0.0, 6.0))) == [only]


def test_the_loss_is_the_weighted_sum():
    module = training_of(*hand_made(), task=0.5, output=2.0, features=0.25)
    assert module.training_step(batch_of(0.0, 6.0), 0).item() == 0.5 * 10 + 2 * 9 + 0.25 * 20


def test_a_block_that_lost_layers_is_not_compared():
    module = training_of(*hand_made(down_layers=2), features=1.0)
    assert values(module.losses(batch_of(0.0))) == {"features": 16.0}


def test_without_a_teacher_only_the_task_counts():
    module = training_of(hand_made()[0], task=1.0)
    assert values(module.losses(batch_of(0.0, 6.0))) == {"task": 10.0}


def test_gradients_lead_towards_the_teacher_and_never_reach_it():
    """d/dx (x - 5)^2 at 2 is -6, d/dx (x - 3)^2 at 1 is -4, d/dx (x - 8)^2 at 4 is -8."""
    student, teacher = hand_made()
    module = training_of(student, teacher, output=1.0, features=1.0)
    module.training_step(batch_of(0.0), 0).backward()
    network = student.unet
    found = [p.grad.item() for p in (network.output, network.down_blocks[0].value, network.up_blocks[0].value)]
    assert found == [-6.0, -4.0, -8.0]
    assert all(parameter.grad is None for parameter in teacher.unet.parameters())


def test_one_update_by_hand_lowers_the_loss():
    """A rate of 0.1 moves the output from 2 by 0.1 * 6, after which (2.6 - 5)^2 is left."""
    student, teacher = hand_made()
    module = training_of(student, teacher, output=1.0)
    assert update(module, batch_of(0.0)) == 9.0
    assert student.unet.output.item() == pytest.approx(2.6)
    assert module.training_step(batch_of(0.0), 0).item() == pytest.approx(2.4**2)


def test_student_and_teacher_see_the_same_input():
    module = training_of(*hand_made(), output=1.0)
    module.losses(batch_of(0.0, 6.0))
    (sample, timesteps), (again, same) = module.task.seen
    assert torch.equal(sample, again) and torch.equal(timesteps, same)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_task_is_to_predict_what_the_scheduler_says(prediction_type):
    """The network puts out 0, so the loss is the mean square of the target, from the noise that the sample holds."""
    student = Pipeline(Network(0.0), prediction_type=prediction_type)
    module = training_of(student, task=1.0)
    batch = batch_of(*torch.linspace(-3, 3, 8).tolist())
    found = module.losses(batch)["task"].item()
    ((sample, timesteps),) = module.task.seen
    assert set(timesteps.tolist()) == {0, 1}
    wanted = []
    for example, one, timestep in zip(batch.examples, sample, timesteps.tolist(), strict=True):
        signal, amplitude = ((0.8, 0.6), (0.6, 0.8))[timestep]
        clean = example.image
        noise = (one - signal * clean) / amplitude
        target = {"epsilon": noise, "sample": clean, "v_prediction": signal * noise - amplitude * clean}
        wanted.append(target[prediction_type].square().mean().item())
    assert found == pytest.approx(sum(wanted) / len(wanted), rel=1e-5)


def test_timesteps_are_drawn_alike_from_those_that_were_given():
    """Of 5 timesteps each comes up a fifth of the time, the first and the last among them."""
    student = Pipeline(Network(0.0), scaled_linear_alphas_cumprod())
    module = training_of(student, task=1.0, timesteps=(999, 640, 640, 17, 0))
    module.losses(batch_of(*[0.0] * 2000))
    drawn = module.task.seen[0][1]
    for timestep, share in ((999, 0.2), (640, 0.4), (17, 0.2), (0, 0.2)):
        assert abs((drawn == timestep).float().mean().item() - share) < 0.04
    assert {*drawn.tolist()} == {999, 640, 17, 0}


# Training and sampling together: what is learnt is what the sampler reads.


class Affine(nn.Module):
    """A network whose output at each timestep is a multiple of the sample and a constant."""

    def __init__(self, length):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.zeros(length)), nn.Parameter(torch.zeros(length))
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()

    def forward(self, sample, timesteps):
        scale, shift = (values[timesteps].view(-1, 1, 1, 1) for values in (self.scale, self.shift))
        return scale * sample + shift


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_what_was_trained_on_one_picture_samples_that_picture(prediction_type):
    """An affine network can be exact on one grey picture; a wrong sign or scale on either side would lead elsewhere."""
    alphas, grey = torch.tensor([0.9, 0.64, 0.36, 0.1]), 0.7
    student = Pipeline(Affine(4), alphas, prediction_type)
    module = training_of(student, task=1.0, timesteps=range(4))
    batch = batch_of(*[grey] * 64, shape=(1, 2, 2))
    optimizer = torch.optim.LBFGS(module.components.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        return loss

    start = closure().item()
    optimizer.step(closure)
    assert closure().item() < 1e-6 * start
    noise = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        made = ddim_sample(
            lambda sample, timestep: student.unet(sample, timestep.expand(len(sample))),
            noise,
            [3, 2, 1, 0],
            alphas,
            prediction_type=prediction_type,
        )
    torch.testing.assert_close(made, torch.full_like(made, grey), atol=5e-3, rtol=0)
