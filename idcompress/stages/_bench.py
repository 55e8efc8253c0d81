"""A bench: examples, their conditioning and a model, on which pipelines are run and measured."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from .. import registry
from ..adapters.pipeline import Model, native_size
from ..artifacts import files
from ..artifacts.recipe import Recipe
from ..artifacts.run_dir import OUTPUTS
from ..artifacts.timing import part
from ..config import Config
from ..console import progress, say
from ..core.timestep_search import gamma_timesteps
from ..data import photographs
from ..errors import IdcError
from ..loading import check_digest, load_source
from ..metrics._base import ImageMetric, MetricValue
from ..tasks import _base
from ..types import Batch, Example
from ._run import make_task

CACHE = OUTPUTS / "cache" / "references"
_CANDIDATES = 512  # of a larger set so many photographs, evenly spread, are looked at: neighbours are often alike


@dataclass
class Bench:
    """Runs pipelines over fixed examples; conditioning is encoded once per batch, whatever is run.

    Attributes:
        photographs: name -> digest of every photograph in use, for a recipe's provenance.
    """

    config: Config
    task: _base.Task
    model: Model
    examples: list[Example]
    photographs: dict[str, str]
    _conditioning: dict[tuple[int, ...], _base.Conditioning] = field(default_factory=dict)
    _metrics: dict[str, ImageMetric] = field(default_factory=dict)

    def images(
        self, pipeline: Any, timesteps: Sequence[int], description: str, positions: Sequence[int] | None = None
    ) -> Tensor:
        """Translate examples: (N, 3, H, W), float32 in [0, 1], CPU.

        On the CPU images go through one by one: kernels differ with the batch, which moved PSNR above 65 dB by up to
        0.004 dB, for a quarter less time.

        Args:
            positions: which of `examples`; None for all of them.
        """
        size = 1 if self.model.pipeline.unet.device.type == "cpu" else self.config.batch_size
        wanted = range(len(self.examples)) if positions is None else positions
        batches = [tuple(wanted[start : start + size]) for start in range(0, len(wanted), size)]
        made = []
        for batch in progress(batches, description, len(batches)):
            examples = [self.examples[position] for position in batch]
            if batch not in self._conditioning:
                with torch.inference_mode(), part("encode"):
                    self._conditioning[batch] = self.task.encode(self.model.pipeline, examples, self.config.seed)
            made.append(
                _base.translate(
                    self.task,
                    pipeline,
                    examples,
                    timesteps,
                    self.config.guidance(),
                    seed=self.config.seed,
                    sampler=self.config.sampler,
                    conditioning=self._conditioning[batch],
                )
            )
        return torch.cat(made)

    def references(self, recipe: Recipe | None, num_inference_steps: int, description: str) -> Tensor:
        """Results at uniform steps, computed once per (weights, data, seed, guidance, steps) and kept lossless.

        Args:
            recipe: whose depth and weights to use; None for the full model. Its timesteps play no part.
        """
        return self.results(recipe, self.uniform(num_inference_steps), description)

    def results(self, recipe: Recipe | None, timesteps: list[int], description: str) -> Tensor:
        """As `references`, over any timesteps."""
        weights = {} if recipe is None else {name: entry["sha256"] for name, entry in recipe.weights.items()}
        depth = None if recipe is None else recipe.depth
        shared = {
            "model": self.model.digest,
            "prune": self.model.prune if depth else "",
            "depth": depth,
            "weights": weights,
            "task": f"{self.config.task.name}.{self.config.task.version}",
            "timesteps": timesteps,
            "options": self.config.task.options,
            "guidance": self.config.guidance(),
            "seed": self.config.seed,
            "sampler": self.config.sampler,
            "dtype": str(self.model.pipeline.unet.dtype),
            "device": self.model.pipeline.unet.device.type,
        }
        paths = [CACHE / f"{files.digest({**shared, **_identity(example)})}.safetensors" for example in self.examples]
        missing = [position for position, path in enumerate(paths) if not path.is_file()]
        if missing:
            pipeline = self.model.pipeline if recipe is None else self.model.for_recipe(recipe)
            images = self.images(pipeline, timesteps, description, missing)
            for position, image in zip(missing, images, strict=True):
                files.write_bytes(paths[position], save({"image": image.contiguous()}))
        return torch.stack([load_file(path)["image"] for path in paths])

    @part("measure")
    def measure(self, names: Sequence[str], outputs: Tensor, references: Tensor | None) -> dict[str, MetricValue]:
        """Image metrics of outputs (N, 3, H, W) over all examples."""
        values = {}
        for name in names:
            metric = self.metric(name)
            metric.update(Batch(self.examples, outputs, references))
            values[name] = metric.compute()
        return values

    def available(self, names: Sequence[str]) -> list[str]:
        """Names of metrics, those that end in "?" only where their weights are on this machine; a line says if not."""
        found = []
        for entry in names:
            name = entry.removesuffix("?")
            try:
                self.metric(name)
            except IdcError as error:
                if name == entry:
                    raise
                say(f"left out: {error}")
            else:
                found.append(name)
        return found

    def metric(self, name: str) -> ImageMetric:
        """A metric, made once: weights are loaded or refused then, and a new result takes the old one's place."""
        if name not in self._metrics:
            entry = registry.load("metric", name, "metric").Metric
            if not issubclass(entry, ImageMetric):
                raise IdcError(f"{name} is a cost, which every evaluation measures; name metrics of images only")
            parameters = dict(registry.bind(entry, self.config.metrics.get(name, {}), f"metrics.{name}"))
            if "device" in inspect.signature(entry).parameters:
                parameters.setdefault("device", str(self.model.pipeline.unet.device))
            self._metrics[name] = entry(**parameters)
        return self._metrics[name]

    def uniform(self, num_inference_steps: int) -> list[int]:
        return gamma_timesteps(1.0, num_inference_steps)


def _identity(example: Example) -> dict[str, Any]:
    """What makes an example's result: its pixels, its condition, its prompt, its noise."""
    import hashlib

    def pixels(image: Tensor | None) -> str | None:
        return None if image is None else hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()

    return {
        "index": example.index,
        "prompt": example.prompt,
        "image": pixels(example.image),
        "condition": pixels(example.condition),
    }


@part("load")
def open_bench(
    config: Config,
    recipe: Recipe,
    *,
    num_samples: int,
    split: str = "search",
    photos: Sequence[photographs.Photograph] | None = None,
    first: int = 0,
) -> Bench:
    """Load the model and choose the examples of a stage.

    Args:
        split: "search" or "evaluate"; a photograph never serves both. Evaluation leaves out every photograph that the
            recipe's stages have seen.
        photos: to use in place of a split's.
        first: of the num_samples examples, where only a portion of them is wanted.

    Raises:
        IdcError: the model does not load, or no photograph is left.
    """
    task = make_task(config, recipe.task)
    model = _load(config, recipe)
    photos = choose_photographs(config, recipe, split, num_samples) if photos is None else photos
    examples = task.examples(photos, num_samples, native_size(model.pipeline), config.prompts(), first=first)
    return Bench(config, task, model, examples, {photo.name: photo.digest for photo in photos[first:num_samples]})


_loaded: dict[str, Model] = {}


def _load(config: Config, recipe: Recipe) -> Model:
    """The recipe's model; the stages of one compress run share it."""
    source = {k: v for k, v in recipe.model.items() if k != "digest"}
    key = files.digest([recipe.task, source, config.device, config.dtype, recipe.prune])
    if key not in _loaded:
        say(f"loading {recipe.model.get('path') or recipe.model['name']} for {recipe.task}")
        _loaded.clear()
        _loaded[key] = load_source(
            recipe.task, recipe.model, device=config.device, dtype=config.dtype, prune=recipe.prune
        )
    check_digest(recipe.model, _loaded[key])
    return _loaded[key]


def choose_photographs(
    config: Config, recipe: Recipe, split: str, num_samples: int | None = None
) -> photographs.PhotographSet:
    """The photographs of a split; for evaluation those that no search of the recipe has seen.

    Args:
        split: "train", "search" or "evaluate"; data.split overrules it. Evaluation takes all of a data set that has
            no split of its own, less what was seen; its half alone where a training saw too many to list them.
        num_samples: so many are wanted, spread over the set; None wants all.

    Raises:
        IdcError: the data set is not as its loader expects, or no photograph is left.
    """
    chosen = split if config.data.split == "auto" else config.data.split
    found = _load_data(config, chosen)
    listed = all(entry.get("photographs") for entry in recipe.provenance if entry["stage"] == "finetune")
    if chosen == "evaluate" and config.data.split == "auto" and not found.own_splits and listed:
        found = _load_data(config, "all")
    if num_samples is not None and len(found) >= 2 * max(num_samples, _CANDIDATES):
        step = len(found) // max(num_samples, _CANDIDATES)
        found = photographs.Subset(found, range(0, len(found), step))
    left = photographs.without(found, recipe.searched_photographs() if chosen in ("evaluate", "all") else ())
    if not left:
        raise IdcError(
            f"no photograph of {data_label(config)} is left for {chosen}: all {len(found)} were seen by the search of "
            "this recipe; give others by data.path"
        )
    return left


def _load_data(config: Config, split: str) -> photographs.PhotographSet:
    load = registry.load("data", config.data.name, "data").load
    options = registry.bind(load, config.data.options, "data.options")
    found: photographs.PhotographSet = load(config.data.path, split, **options)
    return found


def data_label(config: Config) -> str:
    """The data set in use, in words."""
    if config.data.path is None:
        return "photographs in scikit-image, scikit-learn and matplotlib"
    paths = config.data.path if isinstance(config.data.path, list) else [config.data.path]
    return ("" if config.data.name == "photographs" else f"{config.data.name}: ") + ", ".join(paths)
