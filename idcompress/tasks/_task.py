"""What a task is: its pipeline, its examples, how a batch conditions the networks, and what it says about itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .. import registry
from ..adapters.following import following
from ..adapters.graphs import Graph
from ..adapters.pipeline import decode_latents, vae_scale_factor, working_size
from ..core.plan import Plan
from ..core.process import Level, Prediction, Process
from ..core.random import image_generator
from ..core.reuse import Parts, whole
from ..core.sample import Denoise
from ..errors import IdcError
from ..schedulers import process_of
from ..types import Example

if TYPE_CHECKING:
    from PIL import Image

    from ..images.photo_sets import Photograph

Conditioning = dict[str, Tensor]

_STEPS = 10**9  # the step noise of image i is drawn as image _STEPS + i


@dataclass(frozen=True)
class NumpyExample:
    """What a task adds to the NumPy program of an ONNX folder (export/numpy_sampler.py), line by line.

    The program has the graphs as functions by their names, the picture as `image` (1, 3, H, W) and its `size` (width,
    height), a random generator `rng`, and `ids`, the token numbers of the prompts. Lines are format strings, which may
    hold {guidance_scale}, {image_guidance_scale}, {latent_channels} and {factor}, the pixels per latent.

    Attributes:
        start: lines that make `sample`, the noise to begin with, and what else the loop needs.
        inputs: lines that make `inputs`, those of the U-Net by name, of `sample` at `timestep`; of several guidance
            passes, which lie side by side in the batch, the one that samples without guidance comes first.
        combine: lines that make `output`, with guidance, of `outputs`, a pass each.
        side: the graph of a side network. It gets `inputs`, and `beside`, by name, which `start` makes.
        decode: lines that make `decoded`, the result (1, 3, H, W) in [-1, 1], of the last `sample`.
        prompts: one for each branch of guidance; the first asks for something, as the example of every card does. None
            where the task takes no text.
        image_range: least and largest value of `image`: (-1, 1) or (0, 1).
        upscale: side of the result over that of the picture.
        note: where the program departs from the pipeline, for a comment.
    """

    start: str
    inputs: str
    combine: str = "(output,) = outputs"
    side: str = ""
    decode: str = 'decoded = vae_decoder(latents=sample)["decoded"]'
    prompts: tuple[str, ...] = ()
    image_range: tuple[int, int] = (-1, 1)
    upscale: int = 1
    note: str = ""


class Task(ABC):
    """An image-to-image task: its pipeline class, its examples, and how a batch conditions the network.

    Keyword-only parameters of a task's constructor are its `task.options`. Beside the class its file has a `CITATION`,
    BibTeX of the model, which the report reads without importing the file.

    Attributes:
        pipeline_class: name of the pipeline class.
        pipeline_library: the package that has the class.
        own_pipeline_class: one of this program, for networks that `pipeline_class` does not take, see `runnable`.
        further_arguments: of a call of the pipeline beside prompt and image, as Python that a card may hold.
        separate_components: pipeline components that may lie in a repository of their own -> their diffusers class.
        getting_weights: what to do where no hub repository has the published weights.
        networks_of_a_step: the pipeline components that are called at every step, the U-Net first.
        passes_of_pipeline: the guidance passes in the order of its pipeline's batches, by their numbers in `parts`.
        unet_inputs: how many latents, side by side, the U-Net takes: 1 for the noisy ones alone.
        unet_mask_channels: channels of a mask that it takes beside them.
        encodes_image: whether the input image goes through the autoencoder's encoder.
        trained: the pipeline components that fine-tuning trains, or some parameters of; the others are frozen.
        sharpens_training: whether fine-tuning sharpens photographs before it makes examples of them.
        conditioning_dropout: share of training images without a condition; a task says which conditions.
        guidance_scales: what guidance it has, by diffusers' names.
        tags: that its own examples may carry.
        enlarges: how many times it enlarges a small copy that its data set gives; None where it takes none.
        own_sampler: what its pipeline samples by unless it is told otherwise.
        reported_samplers: what an evaluation compares beside the configured sampler.
        cannot_give: which of "score", "teacher" and "denoiser" a timestep strategy cannot have of this task.
        works_in_tiles: whether its pipeline does so by itself, with pictures of any size.
        tiles_note: what to expect where a large picture is worked on in tiles that do not see one another; "" for none.
        cut_note: what the card of a cut model in stock classes should warn of.
        numpy_example: its part of the program that runs an ONNX folder.
    """

    name: ClassVar[str]
    pipeline_class: ClassVar[str]
    pipeline_library: ClassVar[str] = "diffusers"
    own_pipeline_class: ClassVar[str] = ""
    further_arguments: ClassVar[Mapping[str, str]] = {}
    separate_components: ClassVar[Mapping[str, str]] = {}
    getting_weights: ClassVar[str] = "give model.path=FOLDER"
    networks_of_a_step: ClassVar[tuple[str, ...]] = ("unet",)
    passes_of_pipeline: ClassVar[tuple[int, ...]] = (0,)
    unet_inputs: ClassVar[int] = 1
    unet_mask_channels: ClassVar[int] = 0
    encodes_image: ClassVar[bool] = True
    trained: ClassVar[tuple[str, ...]] = ("unet",)
    sharpens_training: ClassVar[bool] = False
    conditioning_dropout: ClassVar[float] = 0.0
    guidance_scales: ClassVar[tuple[str, ...]] = ()
    tags: ClassVar[tuple[str, ...]] = ()
    enlarges: ClassVar[int | None] = None
    own_sampler: ClassVar[str] = "ddim"
    reported_samplers: ClassVar[tuple[str, ...]] = ()
    cannot_give: ClassVar[tuple[str, ...]] = ()
    works_in_tiles: ClassVar[bool] = False
    tiles_note: ClassVar[str] = ""
    cut_note: ClassVar[str] = ""
    numpy_example: ClassVar[NumpyExample]

    @classmethod
    def unet_channels(cls, latent_channels: int) -> int:
        """Input channels of its U-Net."""
        return latent_channels * cls.unet_inputs + cls.unet_mask_channels

    @classmethod
    def runnable(cls, pipeline: Any) -> Any:
        """A loaded pipeline in a class that takes its networks: `pipeline_class` does, unless a task knows better."""
        return pipeline

    @classmethod
    def following(cls, pipeline: Any, plan: Plan, scheduler: Any) -> Any:
        """A pipeline like this one that follows a plan whose steps differ in what they compute.

        Args:
            scheduler: with the plan's timesteps, sampler and numbers.

        Raises:
            IdcError: the plan repeats a timestep.
        """
        side = next(iter(cls.networks_of_a_step[1:]), None)
        return following(pipeline, plan, cls.passes_of_pipeline, side, scheduler)

    @abstractmethod
    def example(
        self, index: int, photo: Photograph, image: Tensor, prompt: str | None, target: Tensor | None = None
    ) -> Example:
        """One example from a crop (3, H, W) in [0, 1] of a photograph; `prompt` None lets the task choose one.

        Args:
            target: the same crop of the photograph's target, where its data set has pairs and the prompt is the pair's;
                that of the photograph itself, where `image` is of its small copy, enlarged.
        """

    @abstractmethod
    def encode(self, pipeline: Any, examples: Sequence[Example], seed: int = 0) -> Conditioning:
        """What conditions the network, for a batch; depends on neither depth nor timesteps, so it is kept.

        Args:
            seed: of the noise, if there is any in it; each image has a generator of its own.
        """

    @abstractmethod
    def parts(self, pipeline: Any, conditioning: Conditioning, guidance: Mapping[str, float]) -> Parts:
        """Close over conditioning and guidance; float32 in and out, whatever the network's dtype."""

    def denoise(self, pipeline: Any, conditioning: Conditioning, guidance: Mapping[str, float]) -> Denoise:
        """All parts at every step."""
        return whole(self.parts(pipeline, conditioning, guidance))

    def process(self, pipeline: Any) -> Process:
        """What the pipeline's timesteps mean: by its scheduler."""
        return process_of(pipeline.scheduler)

    def start(self, pipeline: Any, examples: Sequence[Example], level: Level, seed: int) -> Tensor:
        """The samples (B, 4, h, w), float32, CPU, at the first timestep: unit noise, whatever that timestep is.

        Args:
            level: of the first timestep, for tasks that start from a noised image.
            seed: each image draws from a generator of its own.
        """
        return initial_noise(pipeline, examples, seed)

    def project(self, prediction: Prediction, level: Level, conditioning: Conditioning) -> Prediction:
        """Change a prediction where the task knows part of the result, for example the surroundings of a mask."""
        return prediction

    @abstractmethod
    def encode_training(
        self, pipeline: Any, examples: Sequence[Example], generators: list[torch.Generator], dropout: float
    ) -> tuple[Tensor, Conditioning]:
        """What a training batch is made of: the latents to reconstruct, and what conditions the network.

        Args:
            generators: one per image, for what is drawn: dropped conditions, posterior noise.
            dropout: see `conditioning_dropout`.

        Returns:
            scaled latents (B, 4, h, w), float32, of the wanted results, and the conditioning of `predict`.

        Raises:
            IdcError: an example lacks what the task is trained on.
        """

    @abstractmethod
    def predict(self, pipeline: Any, sample: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """One call of the networks without guidance, for training: sample (B, 4, h, w), timesteps (B,), int64."""

    def training_fault(self, photo: Photograph, prompt: str | None) -> str | None:
        """Why a photograph cannot be trained on, None if it can; `prompt` None lets the task choose one."""
        return None

    def draw_prompt(self, generator: torch.Generator) -> str | None:
        """A prompt for a training photograph that has none; None leaves the choice to `example`."""
        return None

    def decode(self, pipeline: Any, latents: Tensor, conditioning: Conditioning) -> Tensor:
        """Images (B, 3, H, W), float32 in [0, 1] on the CPU, from sampled latents."""
        return decode_latents(pipeline, latents)

    @abstractmethod
    def graphs(self, pipeline: Any) -> list[Graph]:
        """The networks of a pipeline, cut or not, as ONNX graphs in the order in which a picture passes through them.

        Shapes and ranges are those of diffusers: `sample`, `latents` (B, 4, h, w), scaled, `image` (B, 3, H, W) in
        [-1, 1], one `timestep`, int64, for the batch.
        """

    def networks(self, pipeline: Any) -> list[nn.Module]:
        """What is called at every step, the U-Net first: costs are theirs."""
        return [getattr(pipeline, name) for name in self.networks_of_a_step]

    def encoder_tokens(self, pipeline: Any) -> int:
        """Length of the text embedding that the networks see."""
        return int(pipeline.tokenizer.model_max_length)

    def convert(self, main_ckpt: Path, cfw_ckpt: Path, folder: Path, config: Path | None) -> None:
        """Write a pipeline folder from original checkpoints.

        Raises:
            IdcError: the task has none, or they are damaged or of another model.
        """
        others = tasks_with(lambda task: task.convert is not Task.convert)
        raise IdcError(f"there are no original checkpoints to convert for task={self.name}; want {others}")

    def translate_picture(
        self,
        pipeline: Any,
        index: int,
        photo: Photograph,
        picture: Image.Image,
        prompt: str | None,
        plan: Plan,
        *,
        seed: int,
        translate: Callable[[Example], Tensor],
        resolution_px: int | None = None,
    ) -> tuple[str, Tensor]:
        """Translate a picture of any size: the prompt in use and the result (3, H, W), float32 in [0, 1].

        Both sides fit the autoencoder.

        Args:
            resolution_px: what the longer side becomes; None for the model's own.
            translate: samples the plan for one example, as searches and evaluations do.
        """
        from ..images.pictures import fit_to_multiple, to_tensor

        fitted = fit_to_multiple(picture, vae_scale_factor(pipeline), working_size(pipeline, resolution_px))
        example = self.picture_example(index, photo, to_tensor(fitted), prompt)
        return example.prompt, translate(example)

    def picture_example(self, index: int, photo: Photograph, image: Tensor, prompt: str | None) -> Example:
        """The example of a picture that somebody wants translated, where a data set's would be degraded first."""
        return self.example(index, photo, image, prompt)

    def examples(
        self,
        photographs: Sequence[Photograph],
        num_samples: int,
        size: int,
        prompts: Sequence[str] = (),
        *,
        first: int = 0,
    ) -> list[Example]:
        """Examples first .. num_samples - 1: photographs in turn, each time round another crop, prompts in turn.

        Those of a photograph that cannot be read are left out and counted; the others stay as they are.

        Args:
            size: side of the square crops, in pixels.
            prompts: to use in turn; empty takes the photograph's own prompt, else the task's.

        Raises:
            IdcError: none of the photographs can be read.
        """
        from ..images.pictures import crop_pair, crop_square, some, warn_once

        made: list[Example] = []
        unreadable: dict[str, str] = {}
        for index in range(first, num_samples):
            place, number = index % len(photographs), index // len(photographs)
            name = f"photograph {place}"
            try:
                photo = photographs[place]
                name = photo.name
                target = None
                if photo.low is not None and self.enlarges is not None:
                    image, target = crop_pair(photo.low.open(), photo.open(), size, number, self.enlarges)
                else:
                    image = crop_square(photo.open(), size, number)
                    if photo.target is not None and not prompts:
                        target = crop_square(photo.target.open(), size, number)
            except IdcError as error:
                unreadable[name] = str(error)
                continue
            prompt = prompts[index % len(prompts)] if prompts else photo.prompt or None
            made.append(self.example(index, photo, image, prompt, target))
        if unreadable:
            first_one = next(iter(unreadable.values()))
            if not made:
                raise IdcError(f"no photograph can be read; the first: {first_one}")
            warn_once(
                f"{len(unreadable)} photographs cannot be read and are left out, {some(list(unreadable))}: {first_one}"
            )
        return made


def tasks_with(offers: Callable[[type[Task]], bool]) -> str:
    """The registered tasks that offer something, as an error asks for them: "task=NAME or task=NAME"."""
    found = [name for name in registry.names("task") if offers(registry.load("task", name).Task)]
    return " or ".join(f"task={name}" for name in found)


def step_generator(seed: int, index: int) -> torch.Generator:
    """The generator of an image's step noise in ancestral sampling; the start's own would repeat its numbers."""
    return image_generator(seed, _STEPS + index)


def initial_noise(pipeline: Any, examples: Sequence[Example], seed: int) -> Tensor:
    """Unit normal latents (B, 4, h, w), float32, CPU, each image's from its own generator."""
    factor, channels = vae_scale_factor(pipeline), int(pipeline.vae.config.latent_channels)
    return torch.cat(
        [
            torch.randn(
                (1, channels, example.image.shape[1] // factor, example.image.shape[2] // factor),
                generator=image_generator(seed, example.index),
            )
            for example in examples
        ]
    )
