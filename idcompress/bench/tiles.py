"""A whole photograph at its own size: one canvas of latents, whose every step is computed tile by tile and blended."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..adapters.pipeline import vae_scale_factor, working_size
from ..core.plan import Plan, Step
from ..core.process import Level, Prediction
from ..core.sample import sample
from ..core.tiles import blend_tiles, cosine_weights, count_tiles, reflect_pad
from ..images.large import announce_tiles
from ..images.photo_sets import Photograph
from ..images.pictures import to_pil, to_tensor
from ..runs.timing import part
from ..tasks._task import Task
from ..types import Example
from .translate import PipelineAt, check_sample, encode, sampling

Place = tuple[int, int]  # where a tile begins, in latents from the top and from the left


def wants_tiles(pipeline: Any, picture: Image.Image, resolution_px: int | None) -> bool:
    """Whether a picture is larger than one tile, the size that is worked on without tiles."""
    return max(picture.size) > working_size(pipeline, resolution_px)


@torch.inference_mode()
def translate_in_tiles(
    task: Task,
    pipeline: Any,
    index: int,
    photo: Photograph,
    picture: Image.Image,
    prompt: str | None,
    plan: Plan,
    *,
    seed: int,
    resolution_px: int | None = None,
    at_depth: PipelineAt | None = None,
) -> tuple[str, Tensor]:
    """Translate a picture at its own size: the prompt in use, and the result (3, H, W), float32 in [0, 1].

    A shorter side than a tile is enlarged to one, and the result reduced again.

    Args:
        index: seeds the noise, which is drawn for the whole canvas.
        resolution_px: side of the tiles; None takes that which the model was trained on.

    Raises:
        IdcError: the picture is a strip whose work would be mostly waste, or too large.
    """
    factor, side = vae_scale_factor(pipeline), working_size(pipeline, resolution_px)
    enlarge = max(1.0, side / min(picture.size))
    working = [round(length * enlarge) for length in (picture.height, picture.width)]
    canvas = [-(-length // factor) * factor for length in working]
    tile = side // factor
    sizes = {"tile_size": tile, "tile_overlap": tile // 2}

    @cache
    def work() -> _Work:  # after what is refused
        large = picture if enlarge == 1 else picture.resize((working[1], working[0]), Image.Resampling.LANCZOS)
        example = _padded(task.picture_example(index, photo, to_tensor(large), prompt), canvas)
        return _Work(task, pipeline, example, plan, sizes, seed, at_depth)

    announce_tiles(
        photo.path.name,
        picture.size,
        (picture.height, picture.width),
        canvas,
        count_tiles(canvas[0] // factor, canvas[1] // factor, **sizes),
        len(plan),
        lambda: work().seconds_of_a_tile(),
    )
    result = work().run()[0, :, : working[0], : working[1]]
    if enlarge > 1:
        result = to_tensor(to_pil(result).resize(picture.size, Image.Resampling.LANCZOS))
    return work().example.prompt, result


class _Work:
    """One picture's tiles, each with conditioning and denoiser of its own, on one canvas.

    Tiles are computed one by one, so that no batch size shows, and only one of them takes memory.
    """

    def __init__(
        self,
        task: Task,
        pipeline: Any,
        example: Example,
        plan: Plan,
        sizes: dict[str, int],
        seed: int,
        at_depth: PipelineAt | None,
    ) -> None:
        """Make ready.

        Args:
            example: of the whole canvas, whose sides the autoencoder takes.
            sizes: of the tiles, and of what neighbours share, in latents.
        """
        self.task, self.pipeline, self.example, self.plan = task, pipeline, example, plan
        self.seed, self.at_depth = seed, at_depth
        self.factor = vae_scale_factor(pipeline)
        self.sizes = sizes
        height, width = example.image.shape[-2:]
        self.canvas = height // self.factor, width // self.factor

    def run(self) -> Tensor:
        """The result (1, 3, H, W), float32 in [0, 1], CPU."""
        with part("encode"):
            self._begin()
        with part("denoise"):
            arguments = {**self.whole, "denoise": self._denoise, "project": self._project}
            latents = check_sample(sample(plan=self.plan, **arguments), self.plan, self.pipeline)
        with part("decode"):
            height, width = (length * self.factor for length in self.canvas)
            pixels = {name: length * self.factor for name, length in self.sizes.items()}

            def decode(rows: slice, columns: slice) -> Tensor:
                place = rows.start // self.factor, columns.start // self.factor
                area = [slice(s.start // self.factor, s.stop // self.factor) for s in (rows, columns)]
                return self.task.decode(self.pipeline, latents[..., area[0], area[1]], self.conditioning[place])

            return blend_tiles(decode, height, width, **pixels, window=cosine_weights).clamp(0, 1)

    def seconds_of_a_tile(self) -> float:
        """One step of one tile, measured once the networks are warm."""
        tile = self._tile(*(slice(0, min(self.sizes["tile_size"], length)) for length in self.canvas))
        arguments = self._sampling(tile, encode(self.task, self.pipeline, [tile], self.seed))
        took = 0.0
        for _ in range(2):
            began = time.perf_counter()
            output, _ = arguments["denoise"](arguments["start"], self.plan.steps[0], None)
            output.cpu()  # waits for the device
            took = time.perf_counter() - began
        return took

    def _begin(self) -> None:
        """What each tile is told, and the start of the whole."""
        self.conditioning: dict[Place, dict[str, Tensor]] = {}
        self.tiles: dict[Place, Mapping[str, Any]] = {}

        def begin(rows: slice, columns: slice) -> Tensor:
            tile, place = self._tile(rows, columns), (rows.start, columns.start)
            self.conditioning[place] = encode(self.task, self.pipeline, [tile], self.seed)
            self.tiles[place] = self._sampling(tile, self.conditioning[place])
            return torch.zeros(1, 1, rows.stop - rows.start, columns.stop - columns.start)

        self._blended(begin)
        self.whole = self._sampling(self.example, next(iter(self.conditioning.values())))

    def _sampling(self, example: Example, conditioning: dict[str, Tensor]) -> dict[str, Any]:
        return sampling(
            self.task,
            self.pipeline,
            [example],
            self.plan,
            seed=self.seed,
            conditioning=conditioning,
            at_depth=self.at_depth,
        )

    def _tile(self, rows: slice, columns: slice) -> Example:
        """The part of the example at some latents."""
        down, across = (slice(s.start * self.factor, s.stop * self.factor) for s in (rows, columns))
        return _each_picture(self.example, lambda picture: picture[..., down, across])

    def _denoise(self, canvas: Tensor, step: Step, caches: Any) -> tuple[Tensor, Any]:
        """A step of every tile, each with the cache that its last one left."""
        left: dict[Place, Any] = {}

        def tile(rows: slice, columns: slice) -> Tensor:
            place = rows.start, columns.start
            cache = None if caches is None else caches[place]
            output: Tensor
            output, left[place] = self.tiles[place]["denoise"](canvas[..., rows, columns], step, cache)
            return output

        return self._blended(tile), left

    def _project(self, prediction: Prediction, level: Level) -> Prediction:
        """What the task knows of each tile's result."""
        if type(self.task).project is Task.project:  # it knows nothing
            return prediction

        def tile(rows: slice, columns: slice) -> Tensor:
            part_of = Prediction(*(values[..., rows, columns] for values in prediction))
            return torch.cat(self.tiles[rows.start, columns.start]["project"](part_of, level), dim=1)

        return Prediction(*self._blended(tile).chunk(2, dim=1))

    def _blended(self, tile: Callable[[slice, slice], Tensor]) -> Tensor:
        return blend_tiles(tile, *self.canvas, **self.sizes, window=cosine_weights)


def _padded(example: Example, canvas: list[int]) -> Example:
    """An example whose pictures go on, mirrored, to the canvas's right and lower edge."""
    return _each_picture(example, lambda picture: reflect_pad(picture, canvas))


def _each_picture(example: Example, change: Callable[[Tensor], Tensor]) -> Example:
    target, condition = (None if p is None else change(p) for p in (example.target, example.condition))
    return dataclasses.replace(example, image=change(example.image), target=target, condition=condition)
