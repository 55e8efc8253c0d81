"""A bench: examples, their conditioning and a model, on which plans are run and measured."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import registry
from ..adapters.pipeline import check_finite, working_size
from ..console import progress, say
from ..core.plan import Plan
from ..core.sample import Beginnings, Moment, trajectory, walk
from ..errors import IdcError
from ..images import photo_sets
from ..metrics._metric import ImageMetric, MetricValue
from ..runs import ranks
from ..runs.recipe import Recipe
from ..runs.timing import part
from ..sources.model import Model
from ..tasks._task import Conditioning, Task
from ..types import Batch, Example, Teacher
from . import references
from .translate import PipelineAt, check_sample, encode, sampling, translate, uniform_plan

T = TypeVar("T")


@dataclass
class Bench:
    """Runs plans over fixed examples. What conditions the networks is encoded once per batch, for all plans.

    Attributes:
        task: with its options.
        model: whole, and able to be cut.
        examples: what is translated.
        photographs: name -> digest of every photograph in use, for a recipe's provenance.
        identity: the task's name, version and options, which the cache's keys must contain besides the examples.
        seed: of the noise.
        batch_size: images per call of the networks on a GPU.
        metrics: parameters of metrics that have some, by name.
        resolution_px: side of the examples; None for the model's own.
        cache_gb: what the references of all benches may take on the disk.
    """

    task: Task
    model: Model
    examples: list[Example]
    photographs: dict[str, str]
    identity: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 8
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    resolution_px: int | None = None
    cache_gb: float = 10.0
    _conditioning: dict[tuple[int, ...], Conditioning] = field(default_factory=dict)
    _metrics: dict[str, ImageMetric] = field(default_factory=dict)
    _cut: dict[tuple[int, int], Any] = field(default_factory=dict)
    _owners: dict[tuple[int, ...], int] = field(default_factory=dict)

    def images(
        self,
        pipeline: Any,
        plan: Plan,
        description: str,
        positions: Sequence[int] | None = None,
        beginnings: Mapping[tuple[int, ...], Beginnings] | None = None,
        depths: Sequence[int] = (),
    ) -> Tensor:
        """Translate examples: (N, 3, H, W), float32 in [0, 1], CPU.

        Args:
            positions: which of `examples`; None for all of them.
            beginnings: of earlier plans, by batch, to go on from; they are of one pipeline, sampler, guidance, fill and
                `depths`.
            depths: see `translate.sampling`.
        """

        def made(batch: tuple[int, ...]) -> Tensor:
            return translate(
                self.task,
                pipeline,
                [self.examples[position] for position in batch],
                plan,
                seed=self.seed,
                conditioning=self.conditioning(batch),
                at_depth=self.at_depth(pipeline),
                beginnings=None if beginnings is None else beginnings[batch],
                depths=depths,
            )

        return torch.cat(list(self.each(made, self.batches(positions), description)))

    def each(
        self, work: Callable[[tuple[int, ...]], T], batches: Sequence[tuple[int, ...]], description: str
    ) -> Iterator[T]:
        """`work` of every batch, in order; with several processes each does some batches, and all get all results.

        Batches are those of one process, since a network rounds differently in others. A process keeps the batches that
        it has had, whose conditioning and beginnings it knows.
        """
        return ranks.shared(work, batches, description, self._owners, lambda own: progress(own, description, len(own)))

    def images_by_plan(
        self,
        pipeline: Any,
        plans: Sequence[tuple[Sequence[int], Plan]],
        description: str,
        positions: Sequence[int] | None = None,
        beginnings: Mapping[tuple[int, ...], Beginnings] | None = None,
        depths: Sequence[int] = (),
    ) -> Tensor:
        """Translate examples, some by one plan and some by another: (N, 3, H, W), in the examples' order.

        Args:
            plans: positions of examples, and the plan for them; see `fitting.Lists.plans`.
            positions, beginnings, depths: as for `images`.
        """
        made: dict[int, Tensor] = {}
        for some, plan in plans:
            picked = [position for position in some if positions is None or position in positions]
            if picked:
                made |= zip(picked, self.images(pipeline, plan, description, picked, beginnings, depths), strict=True)
        return torch.stack([made[position] for position in sorted(made)])

    def tree(
        self, pipeline: Any, plans: Sequence[Plan], batch: tuple[int, ...], at_depth: PipelineAt | None = None
    ) -> Iterator[tuple[Plan, Tensor, int]]:
        """Translate a batch by many plans, whose common beginnings are sampled once.

        Args:
            at_depth: pipelines for steps that name a depth; None for the model cut there.

        Yields:
            A plan, its images (B, 3, H, W), and the calls of the networks since the plan before.
        """
        arguments = self._sampling(pipeline, plans[0], batch, at_depth or self.at_depth(pipeline))
        visits, calls = walk(plans=plans, **arguments), 0
        while True:
            with torch.inference_mode(), part("denoise"):
                visit = next(visits, None)
            if visit is None:
                return
            calls += 1
            for plan, latents in visit.finished:
                check_sample(latents, plan, pipeline)
                with torch.inference_mode(), part("decode"):
                    images = self.task.decode(pipeline, latents, self.conditioning(batch))
                yield plan, images, calls
                calls = 0

    def history(
        self,
        pipeline: Any,
        plan: Plan,
        batch: tuple[int, ...],
        beginnings: Beginnings | None = None,
        depths: Sequence[int] = (),
    ) -> tuple[Moment, ...]:
        """The last moments of a plan over a batch, as many as its sampler looks at."""
        arguments = self._sampling(pipeline, plan, batch, self.at_depth(pipeline), depths)
        with torch.inference_mode(), part("denoise"):
            *_, last = trajectory(plan=plan, beginnings=beginnings, **arguments)
        return last.history

    def reference_run(self, recipe: Recipe | None, plan: Plan, description: str) -> Teacher:
        """The run that the images of `references` are decoded from. It is sampled once, and kept on disk with them."""
        keys = [references.key(self, recipe, plan, example) for example in self.examples]
        runs = ranks.agreed(lambda: [references.read_run(key) for key in keys], "kept runs")
        missing = [position for position, run in enumerate(runs) if run is None]
        pipeline = self.model.pipeline if recipe is None else self.model.for_recipe(recipe)

        def sampled(batch: tuple[int, ...]) -> tuple[Teacher, Tensor]:
            made = self.teacher(pipeline, plan, batch)
            with torch.inference_mode(), part("decode"):
                return made, self.task.decode(pipeline, made.final.to(pipeline.unet.device), self.conditioning(batch))

        batches = self.batches(missing)
        for batch, (made, images) in zip(batches, self.each(sampled, batches, description), strict=True):
            for i, position in enumerate(batch):
                run = {"samples": made.samples[:, i], "originals": made.originals[:, i], "final": made.final[i]}
                references.keep_run(keys[position], run)
                references.keep(keys[position], images[i])
                runs[position] = run
        if missing:
            references.trim(self.cache_gb)
        known = [run for run in runs if run is not None]
        samples, originals = (torch.stack([run[name] for run in known], dim=1) for name in ("samples", "originals"))
        return Teacher(plan.timesteps, samples, originals, torch.stack([run["final"] for run in known]))

    def teacher(self, pipeline: Any, plan: Plan, positions: Sequence[int] | None = None) -> Teacher:
        """The states and predictions of a plan over all examples, or some of them."""
        samples, originals, finals = [], [], []
        for batch in self.batches(positions):
            arguments = self._sampling(pipeline, plan, batch)
            with torch.inference_mode(), part("denoise"):
                visits = list(trajectory(plan=plan, **arguments))
            samples.append(torch.stack([visit.moment.sample.cpu() for visit in visits]))
            originals.append(torch.stack([visit.moment.prediction.pred_original_sample.cpu() for visit in visits]))
            finals.append(visits[-1].finished[0][1].cpu())
        return Teacher(plan.timesteps, torch.cat(samples, dim=1), torch.cat(originals, dim=1), torch.cat(finals))

    def denoisers(self, pipeline: Any, plan: Plan, finals: Tensor) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """Batch by batch a denoiser through which gradients flow, its start, and what the teacher ended on."""
        for batch in self.batches():
            arguments = self._sampling(pipeline, plan, batch)
            yield arguments["denoise"], arguments["start"], finals[list(batch)].to(arguments["start"])

    def references(
        self, recipe: Recipe | None, plan: Plan, description: str, positions: Sequence[int] | None = None
    ) -> Tensor:
        """Images of a plan, (N, 3, H, W), that are computed once and kept on disk, lossless.

        Args:
            recipe: gives the cut and the weights; None for the whole model. Its own plan is not used.
            positions: which of `examples`; None for all of them.
        """
        wanted = range(len(self.examples)) if positions is None else positions
        keys = {position: references.key(self, recipe, plan, self.examples[position]) for position in wanted}
        images = ranks.agreed(lambda: {place: references.read(key) for place, key in keys.items()}, "kept images")
        missing = [position for position, image in images.items() if image is None]
        if missing:
            pipeline = self.model.pipeline if recipe is None else self.model.for_recipe(recipe)
            for position, image in zip(missing, self.images(pipeline, plan, description, missing), strict=True):
                references.keep(keys[position], image)
                images[position] = image
            references.trim(self.cache_gb)
        for position, image in images.items():
            what = f"the reference of {self.examples[position].name} after {len(plan)} steps"
            if image is not None:
                check_finite(
                    image, f"{what} ({references.CACHE / keys[position]}.safetensors)", self.model.pipeline.vae
                )
        return torch.stack([image for image in images.values() if image is not None])

    def keep(self, recipe: Recipe | None, plan: Plan, images: Mapping[int, Tensor]) -> None:
        """Let `references` find images, by position, that were sampled for another purpose."""
        for position, image in images.items():
            references.keep(references.key(self, recipe, plan, self.examples[position]), image)
        references.trim(self.cache_gb)

    @part("measure")
    def measure(
        self,
        names: Sequence[str],
        outputs: Tensor,
        references: Tensor | None,
        positions: Sequence[int] | None = None,
    ) -> dict[str, MetricValue]:
        """Image metrics of outputs (N, 3, H, W) over all examples, or over those at some positions.

        Of several processes the first one measures, so that all decide by the same numbers.
        """
        examples = self.examples if positions is None else [self.examples[position] for position in positions]

        def measured() -> dict[str, MetricValue]:
            values = {}
            for name in names:
                metric = self.metric(name).fresh()
                metric.update(Batch(examples, outputs, references))
                values[name] = metric.compute()
            return values

        return ranks.agreed(measured, f"values of {', '.join(names)}")

    def available(self, names: Sequence[str]) -> list[str]:
        """The metrics to use: one written as NAME? is left out, with a message, if its weights are not here.

        So is one that wants captions where no example has any.
        """
        found = []
        for entry in names:
            name = entry.removesuffix("?")
            wants_captions = "captions" in registry.load("metric", name, "metric").Metric.needs
            if name != entry and wants_captions and not any(example.captions for example in self.examples):
                say(f"left out: {name} wants captions, and no example has any")
                continue
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
        """A metric, made once per bench. Its weights are loaded, or found missing, at the first call."""
        if name not in self._metrics:
            self._metrics[name] = make_metric(name, self.metrics.get(name, {}), str(self.device))
        return self._metrics[name]

    @property
    def device(self) -> torch.device:
        """Where pictures are made. Not the U-Net's: a fine-tuning lets go of the full one's weights."""
        device: torch.device = self.model.pipeline.vae.device
        return device

    def uniform(self, num_inference_steps: int) -> list[float]:
        """Evenly spaced timesteps of the model's process."""
        return list(uniform_plan(self.model.process, num_inference_steps).timesteps)

    def batches(self, positions: Sequence[int] | None = None) -> list[tuple[int, ...]]:
        """Positions of examples that go through the networks together.

        On the CPU images go one by one: batches would take a quarter less time, but kernels round differently in them,
        which moved PSNR above 65 dB by up to 0.004 dB.
        """
        size = 1 if self.device.type == "cpu" else self.batch_size
        wanted = range(len(self.examples)) if positions is None else positions
        return [tuple(wanted[start : start + size]) for start in range(0, len(wanted), size)]

    def conditioning(self, batch: tuple[int, ...]) -> Conditioning:
        """What conditions the networks for a batch, encoded once."""
        key = (self.seed, *batch)
        if key not in self._conditioning:
            examples = [self.examples[position] for position in batch]
            with torch.inference_mode(), part("encode"):
                self._conditioning[key] = encode(self.task, self.model.pipeline, examples, self.seed)
        return self._conditioning[key]

    def _sampling(
        self,
        pipeline: Any,
        plan: Plan,
        batch: tuple[int, ...],
        at_depth: PipelineAt | None = None,
        depths: Sequence[int] = (),
    ) -> dict[str, Any]:
        """The arguments of the sampling loop for a batch; see `translate.sampling`."""
        examples = [self.examples[position] for position in batch]
        conditioning = self.conditioning(batch)
        return sampling(
            self.task,
            pipeline,
            examples,
            plan,
            seed=self.seed,
            conditioning=conditioning,
            at_depth=at_depth,
            depths=depths,
        )

    def at_depth(self, pipeline: Any) -> PipelineAt:
        """A pipeline at smaller depths, each made once."""

        def at(depth: int) -> Any:
            key = (id(pipeline), depth)
            if key not in self._cut:
                self._cut[key] = (
                    pipeline,
                    self.model.cut_further(pipeline, depth),
                )  # held, so that its id stays its own
            return self._cut[key][1]

        return at


def make_metric(name: str, parameters: Mapping[str, Any], device: str) -> ImageMetric:
    """A metric with its configured parameters; one with a network runs it on a device.

    Raises:
        IdcError: an unknown parameter; its weights are missing, or not what they should be.
    """
    entry = registry.load("metric", name, "metric").Metric
    given = dict(registry.bind(entry, dict(parameters), f"metrics.{name}"))
    if "device" in inspect.signature(entry).parameters:
        given.setdefault("device", device)
    made: ImageMetric = entry(**given)
    return made


def open_bench(
    task: Task,
    model: Model,
    photos: Sequence[photo_sets.Photograph],
    *,
    num_samples: int,
    first: int = 0,
    prompts: Sequence[str] = (),
    resolution_px: int | None = None,
    **settings: Any,
) -> Bench:
    """Make the examples of a bench from photographs.

    Args:
        num_samples, first: make the examples first .. num_samples - 1, going round the photographs.
        prompts: to use in turn; empty for the photographs' own, else the task's.
        resolution_px: side of the examples; None for the model's own.
        settings: further attributes of `Bench`.
    """
    size = working_size(model.pipeline, resolution_px)
    examples = task.examples(photos, num_samples, size, prompts, first=first)
    used = {example.photo for example in examples}
    looked_at = photo_sets.digests_of(photos, range(first, min(num_samples, len(photos))))
    names = {name: digest for name, digest in looked_at.items() if digest in used}
    return Bench(task, model, examples, names, resolution_px=resolution_px, **settings)
