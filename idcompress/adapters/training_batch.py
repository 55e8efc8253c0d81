"""What a network is trained on: a batch's latents, conditions, timesteps and noise, with the output that is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.losses import add_noise, denoising_target
from ..core.process import Process
from ..core.random import image_generator
from ..types import Example


class TrainableTask(Protocol):
    """What training wants of a task; see tasks._task.Task."""

    def encode_training(
        self, pipeline: Any, examples: Sequence[Example], generators: list[torch.Generator], dropout: float
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def predict(self, pipeline: Any, sample: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor: ...


class TrainingBatch:
    """Examples of consecutive sample numbers, and the photographs that could not be read on the way to them.

    No dataclass, list or mapping: Lightning and FSDP walk through those, move their tensors to the device and round
    them to the precision of the network. Examples stay float32 on the CPU until the task encodes them.
    """

    def __init__(self, numbers: list[int], examples: list[Example], unreadable: dict[str, str]) -> None:
        self.numbers, self.examples, self.unreadable = numbers, examples, unreadable


@dataclass(frozen=True)
class NoisedBatch:
    """The arguments of a task's `predict`, and what it should return.

    Attributes:
        sample: (B, 4, h, w), float32, at each image's own timestep.
        timesteps: (B,), int64.
        target: (B, 4, h, w), float32, in the process's prediction type.
    """

    sample: Tensor
    timesteps: Tensor
    conditioning: dict[str, Tensor]
    target: Tensor


@torch.no_grad()
def noised_batch(
    task: TrainableTask,
    pipeline: Any,
    process: Process,
    batch: TrainingBatch,
    timesteps: Tensor,
    *,
    seed: int,
    dropout: float,
    device: torch.device,
) -> NoisedBatch:
    """Encode a batch and add noise to it.

    Every random draw of a sample (timestep, dropped conditions, posterior, noise) comes from the generator of its
    number, so that a sample is the same in whatever batch and process it comes.

    Args:
        timesteps: to draw from, each equally likely.
        dropout: share of images without a condition.
    """
    generators = [image_generator(seed, number) for number in batch.numbers]
    draws = torch.stack([torch.randint(len(timesteps), (), generator=g) for g in generators])
    drawn = timesteps[draws].to(device)
    with torch.autocast(device.type, enabled=False):  # in float32 whatever trains
        latents, conditioning = task.encode_training(pipeline, batch.examples, generators, dropout)
        noise = torch.cat([torch.randn((1, *latents.shape[1:]), generator=g) for g in generators]).to(device)
        sample = add_noise(latents, noise, drawn, process)
        target = denoising_target(latents, noise, drawn, process)
    return NoisedBatch(sample, drawn, conditioning, target)
