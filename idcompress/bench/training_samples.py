"""The endless stream of training samples: a sample's number decides its photograph, crop, prompt and example."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..core.random import image_generator
from ..errors import IdcError
from ..images.degrade import sharpen
from ..images.photo_sets import Photograph, PhotographSet, Subset
from ..images.pictures import random_crop
from ..tasks import _task
from ..types import Example

LISTED = 1000  # photographs up to which a recipe names each one that training may see
_FEW = 16  # with at most this many photographs all stay decoded; more would fill the memory before any is used again


def held_out(photos: PhotographSet, num_samples: int) -> PhotographSet:
    """The last photographs, held out for validation: one per wanted image, but at most a quarter of the set.

    Raises:
        IdcError: there is only one photograph.
    """
    if len(photos) < 2:
        raise IdcError(
            f"fine-tuning wants at least 2 photographs, one of them to watch it by; got {len(photos)}; give more by "
            "data.path"
        )
    count = max(1, min(num_samples, len(photos) // 4))
    return Subset(photos, range(len(photos) - count, len(photos)))


class TrainingSamples:
    """A pure function from a sample's number to its example: the same for any number of processes and workers.

    Every epoch visits each photograph once, in an order of its own. A photograph that cannot be read is replaced by
    the next one of that order.

    Args:
        size: side of the square crops, in pixels.
        count: only the first so many photographs are trained on; the others are held out.
        prompts: to use in turn; empty takes the photograph's own prompt, else one that the task draws.
        flip: mirror every second crop; off where a prompt may say left or right.
        sharpened: make the examples of sharpened crops.
    """

    def __init__(
        self,
        task: _task.Task,
        photos: PhotographSet,
        *,
        size: int,
        count: int,
        seed: int,
        prompts: Sequence[str],
        flip: bool,
        sharpened: bool = False,
    ) -> None:
        self.task, self.photos, self.size, self.count, self.seed = task, photos, size, count, seed
        self.prompts, self.flip, self.sharpened = list(prompts), flip, sharpened
        self._opened: dict[int, list[Image.Image]] = {}

    def __call__(self, number: int) -> tuple[Example, dict[str, str]]:
        """The example, and the photographs that could not be read on the way to it, {name: reason}."""
        epoch, position = divmod(number, self.count)
        order = _order(self.photos, self.seed, epoch, self.count)
        unreadable: dict[str, str] = {}
        for turn in range(self.count):
            index = int(order[(position + turn) % self.count])
            name = f"photograph {index}"
            try:
                photo = self.photos[index]
                name = photo.name
                pictures = self._open(index, photo)
            except Exception as error:  # a file or a decoder may raise anything, and one file must not end a training
                unreadable[name] = str(error) if isinstance(error, IdcError) else f"{type(error).__name__}: {error}"
                continue
            rng = np.random.default_rng([self.seed, number])
            crops = random_crop(pictures, self.size, rng, scales=self.photos.crop_scales, flip=self.flip)
            image, *target = map(sharpen, crops) if self.sharpened else crops
            return self._example(number, photo, image, target[0] if target else None), unreadable
        raise IdcError(f"no photograph can be read; the first: {next(iter(unreadable.values()))}")

    def _open(self, index: int, photo: Photograph) -> list[Image.Image]:
        """The photograph, and the wanted result where it brings one; decoded once where there are few of them."""
        if index not in self._opened:
            pictures = [photo.open(), *([] if photo.target is None else [photo.target.open()])]
            if self.count > _FEW:
                return pictures
            self._opened[index] = pictures
        return self._opened[index]

    def _example(self, number: int, photo: Photograph, image: torch.Tensor, target: torch.Tensor | None) -> Example:
        prompt = self.prompts[number % len(self.prompts)] if self.prompts else photo.prompt or None
        if prompt is None and target is None:
            # Not the training step's own stream: its first draw is the timestep, so the prompt would depend on it.
            prompt = self.task.draw_prompt(image_generator(self.seed, -1 - number))
        return self.task.example(number, photo, image, prompt, target)


@lru_cache(maxsize=2)
def _order(photos: PhotographSet, seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    order = photos.order(seed, epoch)
    return order[order < count]
