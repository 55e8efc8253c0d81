"""Small typed values that everyone shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .core.process import Process
    from .core.sample import Denoise, Sampler


@dataclass(frozen=True)
class Example:
    """One picture to translate.

    Attributes:
        index: position in its data set. It seeds the noise, so that neither batch size nor order changes a result.
        name: what to call it in files and tables.
        photo: content digest (SHA-256) of the photograph that it was cut from.
        image: (3, H, W), float32 in [0, 1]: the photograph at the model's resolution.
        prompt: instruction or caption.
        target: (3, H, W), the true result where it can be computed, else None.
        condition: (3, H, W), the control image where the task has one, else None.
        captions: what the input and the wanted result show, in words, where the data set says so, else None.
        tags: words to group results by, for example "easy" or "hard".
    """

    index: int
    name: str
    photo: str
    image: Tensor
    prompt: str = ""
    target: Tensor | None = None
    condition: Tensor | None = None
    captions: tuple[str, str] | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Outputs beside all that a metric may compare them with; every image is (B, 3, H, W), float32 in [0, 1], CPU.

    Attributes:
        outputs: what the model made of `examples`.
        references: the full model's results at the reference steps, else None.
    """

    examples: list[Example]
    outputs: Tensor
    references: Tensor | None = None

    def stack(self, name: str) -> Tensor:
        """The examples' `image`, `target` or `condition` as one tensor (B, 3, H, W)."""
        import torch

        return torch.stack([getattr(example, name) for example in self.examples])


@dataclass(frozen=True)
class CutRequest:
    """What a prune method may use to find its candidates. It says in NEEDS which of `batches` and `loss` it wants.

    Attributes:
        batches: training batches to calibrate with, the same ones at every call; None where it asked for none.
        loss: (components, batch[, timestep]) -> the task's own training loss, a tensor (), of the model with these
            components in place of its own. Gradients flow to whatever of them wants some; those of the loaded model
            want none, and a method lets its own copies. Each sample's timestep is drawn, unless one is given for all;
            its noise is always the same. None where it asked for none.
        seed: for methods that draw random numbers.
    """

    batches: Callable[[], Iterable[Any]] | None = None
    loss: Callable[..., Tensor] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Teacher:
    """The many-step run that a schedule should come close to, over some images.

    Attributes:
        timesteps: of the run, never increasing.
        samples: (steps, B, ...), float32, CPU: the sample at each of them.
        originals: (steps, B, ...), the x_0 that was predicted there.
        final: (B, ...), the sample that the run ended on.
    """

    timesteps: tuple[float, ...]
    samples: Tensor
    originals: Tensor
    final: Tensor


@dataclass(frozen=True)
class ScheduleRequest:
    """What a timestep strategy may use. A strategy says in NEEDS which of the four sources it wants.

    Attributes:
        num_inference_steps: length of the list that is wanted.
        process: what timesteps mean.
        score: timesteps -> quality, higher is better; None where nothing may be sampled. Values are cached by the
            caller, one trace row each; keyword arguments (say, gamma=0.8) go into the row.
        better: (timesteps, other) -> whether the first list scores higher, judged on as few images as that takes;
            keyword arguments are pairs, for either list's row. None where lists are only scored.
        teacher: gives the many-step run of the searched images.
        denoiser: gives, batch by batch, (denoise, start, final sample of the teacher), through which gradients flow.
        sampler: what will run the list.
        layers: names of the layers that a step can pass by; a score takes a list of them for each step, `skip`.
        seed: for strategies that draw random numbers.
    """

    num_inference_steps: int
    process: Process
    score: Callable[..., float] | None = None
    better: Callable[..., bool] | None = None
    teacher: Callable[[], Teacher] | None = None
    denoiser: Callable[[], Iterable[tuple[Denoise, Tensor, Tensor]]] | None = None
    sampler: Sampler | None = None
    layers: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Schedule:
    """A strategy's answer.

    Attributes:
        timesteps: the list; as long as it was asked for, but where layers are passed by.
        details: what the report should say about how it was found.
        skip: the layers that each step passes by, for strategies that choose some.
    """

    timesteps: list[float]
    details: dict[str, object] = field(default_factory=dict)
    skip: Sequence[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        points: (x, y); x may be a word.
        intervals: (low, high) of every y, where they are known.
    """

    label: str
    points: list[tuple[float | str, float]]
    intervals: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """What to draw: lines over one pair of axes."""

    x_label: str
    y_label: str
    series: list[Series]


@dataclass(frozen=True)
class Study:
    """What an experiment found.

    Attributes:
        rows: column -> value, the same columns in every row: a word, a number, None, or a paired difference
            {"mean", "interval", "num_images", "verdict"}, empty where no image differs.
        charts: to be drawn one below the other.
        outcome: the answer in a sentence, computed from the numbers.
        notes: what was compared with what, on which images.
    """

    rows: list[dict[str, Any]]
    charts: list[Chart]
    outcome: str
    notes: list[str] = field(default_factory=list)
