"""Networks that put out plain numbers, for tests of the training step whose results are worked out by hand."""

import torch
from torch import nn

from idcompress.adapters import training
from idcompress.types import Example

# Noise levels with whole amplitudes: signal 0.8 and noise 0.6, then signal 0.6 and noise 0.8.
LEVELS = torch.tensor([0.64, 0.36])


class Block(nn.Module):
    """Puts out one number everywhere; two blocks correspond where they have as many layers."""

    def __init__(self, value, layers=1):
        super().__init__()
        self.value, self.resnets, self.downsamplers = nn.Parameter(torch.tensor(value)), [None] * layers, None

    def forward(self, sample):
        return self.value.expand_as(sample), ()


class Network(nn.Module):
    """A U-Net of one down and one up block, whose output is `output` everywhere."""

    def __init__(self, output, down=0.0, up=0.0, down_layers=1):
        super().__init__()
        self.output = nn.Parameter(torch.tensor(output))
        self.down_blocks = nn.ModuleList([Block(down, down_layers)])
        self.up_blocks = nn.ModuleList([Block(up)])

    def forward(self, sample, timesteps):
        self.down_blocks[0](sample), self.up_blocks[0](sample)
        return self.output.expand_as(sample)


class Pipeline:
    """What the training step reads of a pipeline."""

    def __init__(self, unet, alphas_cumprod=LEVELS, prediction_type="sample"):
        config = type("Config", (), {"prediction_type": prediction_type})
        self.unet = unet
        self.scheduler = type("Scheduler", (), {"alphas_cumprod": alphas_cumprod, "config": config})


class Task:
    """Clean latents are the examples' images, and nothing conditions the network; `seen` lists its inputs."""

    def __init__(self):
        self.seen = []

    def encode_training(self, pipeline, examples, generators, dropout):
        return torch.stack([example.image for example in examples]), {}

    def predict(self, pipeline, sample, timesteps, conditioning):
        self.seen.append((sample, timesteps))
        return pipeline.unet(sample, timesteps)


def batch_of(*values, first=0, shape=(1, 1, 2)):
    """A batch of images that hold one value each, with consecutive sample numbers."""
    numbers = list(range(first, first + len(values)))
    images = [torch.full(shape, value) for value in values]
    return training.TrainingBatch(
        numbers, [Example(index=n, name="", photo="", image=i) for n, i in zip(numbers, images, strict=True)], {}
    )


def training_of(student, teacher=None, *, timesteps=(0, 1), **weights):
    """The training step; the loss terms that `weights` does not name have weight 0."""
    module = training.Finetuning(
        Task(),
        student,
        teacher,
        trained=("unet",),
        identity={},
        weights={"task": 0.0, "output": 0.0, "features": 0.0} | weights,
        timesteps=timesteps,
        conditioning_dropout=0.0,
        seed=0,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        schedule="constant",
        warmup_steps=0,
        preview=lambda step: {},
    )
    module.log = module.log_dict = lambda *_, **__: None  # there is no trainer to log to
    return module


def update(module, batch):
    """One step of the module's own optimiser; returns the loss before it."""
    optimizer = module._optimizer([p for p in module.components.parameters() if p.requires_grad])
    optimizer.zero_grad()
    loss = module.training_step(batch, 0)
    loss.backward()
    optimizer.step()
    return loss.item()
