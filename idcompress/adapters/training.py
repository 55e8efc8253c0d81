"""Fine-tuning on Lightning: the training step, the stream of samples, what is watched and what is kept."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers.optimization import get_scheduler
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from ..core.losses import feature_loss
from ..errors import IdcError
from ..schedulers import process_of
from ..types import Example
from .checkpoints import CHECKPOINT, StreamedCheckpoints
from .training_batch import TrainableTask, TrainingBatch, noised_batch


@dataclass(frozen=True)
class Frozen:
    """What is not trained, hidden from Lightning so that it neither saves, averages, copies nor synchronises it.

    Attributes:
        student: the pruned pipeline, whose trained components the LightningModule registers.
        teacher: the full pipeline, None where nothing is distilled.
        preview: samples images and returns numbers, given the step.
    """

    student: Any
    teacher: Any
    preview: Callable[[int], dict[str, float]]

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self

    def to(self, device: torch.device, trained: Sequence[str]) -> None:
        for pipeline, skipped in ((self.student, trained), (self.teacher, ())):
            for name, component in (pipeline.components if pipeline is not None else {}).items():
                if isinstance(component, nn.Module) and name not in skipped:
                    component.to(device).requires_grad_(False).eval()


class Finetuning(pl.LightningModule):
    """Train a pruned model at its task, by itself (`task` weight) or towards the full model (`output`, `features`).

    What is drawn for a sample follows from its number, so that neither the number of devices nor an interruption
    changes what is trained.

    Args:
        student: pruned pipeline, float32; components of `trained` are trained, in place.
        parameters: names "component.parameter" of those that are trained, the others being frozen; None: all.
        teacher: the full pipeline; needed where a distillation weight is not 0.
        identity: what a checkpoint must agree in to be continued: {"task", "depth", "model", ...}.
        weights: {"task", "output", "features"} weights of the loss terms.
        timesteps: training timesteps to draw from, each equally likely.
        preview: called with the step before the first update and at every validation, with the averaged weights in
            place. A continued run may call it again with a step that it knows. The numbers it returns are logged.
        matched: modules of the student's U-Net whose outputs are compared -> the teacher's; None: `matched_blocks`.
    """

    def __init__(
        self,
        task: TrainableTask,
        student: Any,
        teacher: Any,
        *,
        trained: Sequence[str],
        parameters: Collection[str] | None = None,
        identity: dict[str, Any],
        weights: dict[str, float],
        timesteps: Sequence[int],
        conditioning_dropout: float,
        seed: int,
        optimizer: Callable[[Any], torch.optim.Optimizer],
        schedule: str,
        warmup_steps: int,
        preview: Callable[[int], dict[str, float]],
        matched: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters({"identity": identity})
        self.components = nn.ModuleDict({name: getattr(student, name) for name in trained})
        self.components.train()
        for name, parameter in self.components.named_parameters():
            parameter.requires_grad_(parameters is None or name in parameters)
        self.frozen = Frozen(student, teacher, preview)
        self.task, self.weights, self.seed = task, weights, seed
        self.conditioning_dropout = conditioning_dropout
        self.timesteps = torch.tensor(timesteps)
        self.process = process_of(student.scheduler)
        self.matched: dict[str, str] = {}
        if weights["features"]:
            same = {name: name for name in matched_blocks(student.unet, teacher.unet)} if matched is None else matched
            self.matched = dict(same)
        self._optimizer, self._schedule, self._warmup_steps = optimizer, schedule, warmup_steps

    def setup(self, stage: str) -> None:
        """Take the first validation before training, and before a strategy wraps or shards the networks."""
        device = self.trainer.strategy.root_device
        self.frozen.to(device, list(self.components))
        self.components.to(device)
        self._look(0)

    def on_train_start(self) -> None:
        """Repeat a validation that an interruption cut short, since the checkpoint of its step was already saved."""
        interval = int(self.trainer.val_check_interval) // self.trainer.accumulate_grad_batches
        if self.global_step and self.global_step % interval == 0:
            averages = [c for c in self.trainer.callbacks if isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
            for callback in averages:
                callback.on_validation_epoch_start(self.trainer, self)
            self._look(self.global_step)
            for callback in averages:
                callback.on_validation_epoch_end(self.trainer, self)

    def _look(self, step: int) -> None:
        self.components.eval()
        with self.trainer.precision_plugin.val_step_context():
            self.frozen.preview(step)
        self.components.train()

    def training_step(self, batch: TrainingBatch, batch_index: int) -> Tensor:
        terms = self.losses(batch)
        loss = sum(
            (self.weights[name] * term for name, term in terms.items()), start=torch.zeros((), device=self.device)
        )
        if not torch.isfinite(loss):
            raise IdcError(
                f"the loss is {loss.item()} at step {self.global_step} (samples {batch.numbers[0]} to "
                f"{batch.numbers[-1]}); the last checkpoint is kept; lower finetune.optimizer.lr or "
                "trainer.gradient_clip_val"
            )
        self.log_dict({f"loss_{name}": term.detach() for name, term in terms.items()}, sync_dist=True)
        self.log("loss", loss.detach(), prog_bar=True, sync_dist=True)
        return loss

    def losses(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """The terms of the loss, not weighted; those of weight 0 are not computed."""
        # 1. The batch: latents, conditions, timesteps and noise.
        student, teacher = self.frozen.student, self.frozen.teacher
        noised = noised_batch(
            self.task,
            student,
            self.process,
            batch,
            self.timesteps,
            seed=self.seed,
            dropout=self.conditioning_dropout,
            device=self.device,
        )
        # 2. The pruned model, and the full one on the same input.
        given = noised.sample, noised.timesteps, noised.conditioning
        with _features(student.unet, dict(zip(self.matched, self.matched, strict=True))) as features:
            output = self.task.predict(student, *given)
        terms = {"task": F.mse_loss(output.float(), noised.target)} if self.weights["task"] else {}
        if teacher is not None:
            with torch.no_grad(), _features(teacher.unet, self.matched) as wanted_features:
                wanted = self.task.predict(teacher, *given)
            if self.weights["output"]:
                terms["output"] = F.mse_loss(output.float(), wanted.float())
            if self.matched:
                terms["features"] = feature_loss(features, wanted_features)
        return terms

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.log_dict(self.frozen.preview(self.global_step), sync_dist=True, batch_size=1)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Under FSDP the root module clips, since a norm is taken over all shards; Lightning refuses to."""
        if isinstance(self.trainer.strategy, FSDPStrategy) and gradient_clip_val and gradient_clip_algorithm != "value":
            self.trainer.strategy.model.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer([p for p in self.components.parameters() if p.requires_grad])
        total = self.trainer.max_steps if self.trainer.max_steps > 0 else None
        if total is None and not self._schedule.startswith("constant"):
            raise IdcError(f"finetune.schedule={self._schedule} needs the number of updates; set trainer.max_steps")
        schedule = get_scheduler(
            self._schedule, optimizer, num_warmup_steps=self._warmup_steps, num_training_steps=total
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_identity(checkpoint, self.hparams["identity"], "the checkpoint")


def matching_parameters(networks: Mapping[str, nn.Module], patterns: Sequence[str]) -> set[str]:
    """Names "network.parameter" that one of the patterns matches, as a shell matches file names.

    Raises:
        IdcError: a pattern matches nothing, naming it.
    """
    names = [f"{name}.{key}" for name, network in networks.items() for key, _ in network.named_parameters()]
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise IdcError(
                f"finetune.parameters: {pattern!r} matches no parameter of {', '.join(networks)}; names are like "
                f"{names[0]}"
            )
        found |= matched
    return found


def check_identity(checkpoint: dict[str, Any], wanted: dict[str, Any], name: str) -> None:
    """Refuse a checkpoint of another task, depth or model.

    Raises:
        IdcError: naming both.
    """
    parameters = checkpoint.get("hyper_parameters")
    found = parameters.get("identity") if isinstance(parameters, dict) else None
    whole = isinstance(checkpoint.get("state_dict"), dict) and type(checkpoint.get("global_step")) is int
    if not isinstance(found, dict) or not whole:
        raise IdcError(f"{name} is not a checkpoint of idc finetune")
    for key, value in wanted.items():
        if found.get(key) != value:
            raise IdcError(
                f"{name} is of {key}={found.get(key)}, this run is of {key}={value}; drop finetune.checkpoint"
            )


def matched_blocks(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Blocks whose outputs mean the same in a pruned and a full U-Net, by name.

    An up block loses layers at its front only, so its output always corresponds; a down block that lost layers or its
    downsampler ends elsewhere. Where nothing is cut these are BK-SDM's four down and four up blocks.
    """
    names = []
    for name, block in student.named_modules():
        path, _, index = name.rpartition(".")
        if path in ("down_blocks", "up_blocks") and index.isdigit():
            whole = teacher.get_submodule(name)
            if path == "up_blocks" or _layout(block) == _layout(whole):
                names.append(name)
    return names


def _layout(block: Any) -> tuple[int, bool]:
    return len(block.resnets), block.downsamplers is not None


@contextmanager
def _features(unet: nn.Module, modules: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """Collect the hidden states that some modules put out while the context is open.

    Args:
        modules: what to call a state -> name of the module.
    """
    features: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            features[name] = output[0] if isinstance(output, tuple) else output  # a down block: (hidden state, skips)

        return hook

    handles = [unet.get_submodule(name).register_forward_hook(keep(key)) for key, name in modules.items()]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


# --- samples ----------------------------------------------------------------------------------------------------------


class _Batches(Dataset[TrainingBatch]):
    """Batch g of this process holds the samples (g * processes + rank) * size onward."""

    def __init__(
        self, sample: Callable[[int], tuple[Example, dict[str, str]]], size: int, rank: int, processes: int
    ) -> None:
        self.sample, self.size, self.rank, self.processes = sample, size, rank, processes

    def __getitem__(self, index: int) -> TrainingBatch:
        first = (index * self.processes + self.rank) * self.size
        numbers = list(range(first, first + self.size))
        made = [self.sample(number) for number in numbers]
        unreadable = dict(itertools.chain.from_iterable(bad.items() for _, bad in made))
        return TrainingBatch(numbers, [example for example, _ in made], unreadable)


class _From(Sampler[int]):
    """Batch numbers from `start` on, without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


class TrainingData(pl.LightningDataModule):
    """The stream of training samples, and one empty validation batch: the preview has its own images.

    Args:
        sample: number -> its example, and what could not be read on the way, {name: reason}; a pure function.
        batch_size: samples per update, over all processes and accumulated batches.
    """

    def __init__(
        self, sample: Callable[[int], tuple[Example, dict[str, str]]], batch_size: int, num_workers: int
    ) -> None:
        super().__init__()
        self.sample, self.batch_size, self.num_workers = sample, batch_size, num_workers

    def train_dataloader(self) -> DataLoader[TrainingBatch]:
        """Go on where the restored step count says: what a batch holds follows from its number alone."""
        assert self.trainer is not None
        parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
        if self.batch_size % parts:
            raise IdcError(
                f"finetune.batch_size={self.batch_size} does not divide among {self.trainer.world_size} processes x "
                f"{self.trainer.accumulate_grad_batches} accumulated batches; want a multiple of {parts}"
            )
        size = self.batch_size // parts
        batches = _Batches(self.sample, size, self.trainer.global_rank, self.trainer.world_size)
        start = self.trainer.global_step * self.trainer.accumulate_grad_batches
        return DataLoader(
            batches,
            sampler=_From(start),
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Examples stay on the CPU until the task encodes them."""
        return batch

    def val_dataloader(self) -> list[int]:
        return [0]


# --- callbacks --------------------------------------------------------------------------------------------------------


class UnreadableImages(pl.Callback):
    """Count and name the photographs that could not be read; more than one in a hundred stops the run.

    Args:
        total: photographs in the set.
        warn: called with a line for each.
    """

    SHARE = 0.01

    def __init__(self, total: int, warn: Callable[[str], None]) -> None:
        self.total, self.warn = total, warn
        self.found: dict[str, str] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_index: int
    ) -> None:
        new = {name: reason for name, reason in batch.unreadable.items() if name not in self.found}
        self.found |= new
        for name, reason in new.items():
            self.warn(f"{name} is left out: {reason}")
        if len(self.found) > self.SHARE * self.total:
            raise IdcError(
                f"{len(self.found)} of {self.total} photographs cannot be read, more than 1 %: "
                f"{', '.join(sorted(self.found)[:5])}; mend or remove them (data.path)"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"found": self.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.found = dict(state["found"])


class Progress(pl.Callback):
    """A bar with the time left, and a line at every logged step.

    Args:
        say: called with the line.
        bar: makes the bar's context: (description, total, completed) -> advance().
    """

    def __init__(self, say: Callable[[str], None], bar: Callable[..., Any]) -> None:
        self.say, self.bar = say, bar
        self._open = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._advance = self._open.enter_context(self.bar("fine-tuning", total, trainer.global_step))

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        if not trainer.is_global_zero or (batch_index + 1) % trainer.accumulate_grad_batches:
            return
        self._advance()
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self.say(f"  step {trainer.global_step}  loss {float(trainer.callback_metrics['loss']):.4f}  lr {rate:.2e}")

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._open.close()

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self._open.close()


def average_weights(decay: float) -> WeightAveraging:
    """Lightning's averaging with diffusers' warm-up of the decay, so that short runs are not held at their start.

    Source: min(decay, (1 + n) / (10 + n)) after n updates, as EMAModel of diffusers.training_utils.
    """

    def average(average: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        n = int(updates)
        return average.lerp(current.to(average.dtype), 1 - min(decay, (1 + n) / (10 + n)))

    return WeightAveraging(use_buffers=False, avg_fn=average)


def checkpoints(folder: Path, every_n_steps: int) -> ModelCheckpoint:
    """Save the state at the given interval, always under the same name."""
    return ModelCheckpoint(
        dirpath=folder,
        filename=Path(CHECKPOINT).stem,
        every_n_train_steps=every_n_steps,
        enable_version_counter=False,
    )


class FinalCheckpoint(pl.Callback):
    """Save the last state when training ends by itself, whatever the step: it holds the result."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)


def make_trainer(arguments: dict[str, Any], folder: Path, callbacks: list[Any], loggers: list[Any]) -> pl.Trainer:
    """Lightning's Trainer; the losses always go to logs/ in the folder, as CSV.

    Args:
        arguments: of the Trainer, as the configuration holds them.
        loggers: beside the CSV one.

    Raises:
        IdcError: the Trainer does not take the arguments.
    """
    plugins = arguments.pop("plugins", None) or []
    plugins = [*(plugins if isinstance(plugins, list) else [plugins]), StreamedCheckpoints()]
    if SLURMEnvironment.detect() and os.environ.get("SLURM_NTASKS") == "1":
        # Slurm started this process alone: those of the other devices are Lightning's to start, as anywhere else.
        plugins.append(LightningEnvironment())
    try:
        return pl.Trainer(
            **arguments,
            plugins=plugins,
            callbacks=callbacks,
            logger=[CSVLogger(folder, name="logs", flush_logs_every_n_steps=10), *loggers],
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise IdcError(f"trainer: {error}") from None
