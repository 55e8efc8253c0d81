"""Training batches and the task's own loss, for prune methods that look at them before they choose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..adapters.pipeline import with_components, working_size
from ..adapters.training_batch import TrainingBatch, noised_batch
from ..images.photo_sets import PhotographSet
from .bench import Bench
from .training_samples import TrainingSamples


class Calibration:
    """The first training samples of some photographs.

    Args:
        bench: whose model and task it is; its batch size is that of the batches.
        photos: only the first num_samples of them are looked at.
        num_samples: images in all batches together.
        prompts: as fine-tuning takes them.
    """

    def __init__(self, bench: Bench, photos: PhotographSet, *, num_samples: int, prompts: Sequence[str]) -> None:
        self.bench, self.num_samples = bench, num_samples
        self.samples = TrainingSamples(
            bench.task,
            photos,
            size=working_size(bench.model.pipeline, bench.resolution_px),
            count=min(len(photos), num_samples),
            seed=bench.seed,
            prompts=prompts,
            flip=False,
        )

    def batches(self) -> Iterator[TrainingBatch]:
        """The same batches at every call; noise and timesteps follow from the samples' numbers."""
        for start in range(0, self.num_samples, self.bench.batch_size):
            numbers = list(range(start, min(start + self.bench.batch_size, self.num_samples)))
            yield TrainingBatch(numbers, [self.samples(number)[0] for number in numbers], {})

    def loss(self, components: Mapping[str, Any], batch: TrainingBatch, timestep: int | None = None) -> Tensor:
        """The mean squared error of the model with these components; a tensor ().

        Args:
            timestep: None draws any of the training timesteps for each sample.
        """
        bench, own = self.bench, self.bench.model.pipeline
        pipeline = with_components(own, {name: c for name, c in components.items() if c is not getattr(own, name)})
        unet, process = pipeline.unet, bench.model.process
        noised = noised_batch(
            bench.task,
            pipeline,
            process,
            batch,
            torch.arange(process.num_train_timesteps) if timestep is None else torch.tensor([timestep]),
            seed=bench.seed,
            dropout=0.0,
            device=unet.device,
        )
        with torch.autocast(unet.device.type, dtype=unet.dtype, enabled=unet.dtype != torch.float32):
            output = bench.task.predict(pipeline, noised.sample, noised.timesteps, noised.conditioning)
        return F.mse_loss(output.float(), noised.target)
