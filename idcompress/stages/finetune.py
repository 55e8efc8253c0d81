"""Train the pruned model back to quality, on one device or many"""

from __future__ import annotations

import copy
import dataclasses
import signal
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..adapters import training
from ..adapters.pipeline import Model, native_size, vae_scale_factor, with_components
from ..artifacts import files
from ..artifacts.recipe import Recipe
from ..artifacts.run_dir import RunDir, is_main_process
from ..artifacts.timing import part
from ..config import Config, instantiate
from ..console import progress_bar, say, warn
from ..data.images import to_pil
from ..errors import IdcError
from ..metrics._base import number_or_equal
from ..report.figures import recovery_curve
from ..report.finetuning import preview_grid
from ._bench import Bench, choose_photographs, open_bench
from ._run import provenance, show, with_depth
from ._samples import LISTED, TrainingSamples, held_out
from ._thresholds import metrics_of, missed, parse_thresholds


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Fine-tune the pruned networks of a recipe and hand on one with their weights.

    With finetune.keep=best the recipe that came in goes on instead where training has made nothing better of it.

    Writes checkpoints/last.ckpt, logs/, previews/, trace.jsonl (a row per validation), recovery.png, metrics.json and
    a .safetensors file per trained component.

    Raises:
        IdcError: a setting cannot be, images cannot be read, the loss is no number, the disk is full.
    """
    training.quiet_lightning()
    recipe = with_depth(recipes[0], config)
    settings = config.finetune

    # 1. The full model and its pruned copy, in float32; Lightning moves them to their device.
    where = dataclasses.replace(config, device="cpu", dtype="float32")
    photos = choose_photographs(where, recipe, "train")
    shown = held_out(photos, settings.num_samples)
    bench = open_bench(where, recipe, photos=shown, num_samples=settings.num_samples)
    trained = settings.components or list(bench.task.trained)
    student = _student(bench.model, recipe, trained)
    distils = config.loss.output > 0 or config.loss.features > 0

    # 2. What is trained, on what, and how it is watched.
    preview = Preview(bench, student, run_dir, config, trained, keep_full=distils)
    samples = TrainingSamples(
        bench.task,
        photos,
        size=_resolution(settings.resolution, bench.model.pipeline),
        count=len(photos) - len(shown),
        seed=config.seed,
        prompts=config.prompts(),
        flip=settings.flip,
    )
    identity: dict[str, Any] = {
        "task": recipe.task,
        "depth": recipe.depth or bench.model.full_depth,
        "model": bench.model.digest,
        "components": trained,
    }
    dropout = settings.conditioning_dropout
    module = training.Finetuning(
        bench.task,
        student,
        bench.model.pipeline if distils else None,
        trained=trained,
        identity=identity,
        weights={"task": config.loss.task, "output": config.loss.output, "features": config.loss.features},
        timesteps=bench.uniform(config.num_inference_steps) if settings.timesteps == "inference" else range(1000),
        conditioning_dropout=bench.task.conditioning_dropout if dropout is None else dropout,
        seed=config.seed,
        optimizer=partial(instantiate, settings.optimizer, "finetune.optimizer"),
        schedule=settings.schedule,
        warmup_steps=settings.warmup_steps,
        preview=preview,
    )
    networks: list[Any] = list(module.components.values())
    for component in networks:
        if settings.gradient_checkpointing:
            component.enable_gradient_checkpointing()
        if settings.compile:
            component.compile()
    checkpoint = _checkpoint(config, run_dir, identity)
    callbacks: list[Any] = [
        training.UnreadableImages(len(photos), warn),
        training.Progress(say, progress_bar),
        training.checkpoints(run_dir / "checkpoints", settings.checkpoint_every_n_steps),
        training.FinalCheckpoint(run_dir / "checkpoints" / training.CHECKPOINT),
    ]
    if settings.ema_decay is not None:
        callbacks.append(training.average_weights(settings.ema_decay))

    # 3. Train; the last checkpoint holds the result.
    data = training.TrainingData(samples, settings.batch_size, settings.num_workers)
    say(
        f"fine-tuning {', '.join(trained)} at depth {identity['depth']} of {bench.model.full_depth}: "
        f"{sum(p.numel() for p in module.parameters() if p.requires_grad):,} parameters, {samples.count} photographs, "
        f"{settings.batch_size} images per update"
    )
    loggers = [instantiate(node, f"finetune.logger.{name}") for name, node in settings.logger.items()]
    trainer = training.make_trainer(_trainer_arguments(config, run_dir), run_dir.path, callbacks, loggers)
    _fit(trainer, module, data, checkpoint)
    if not is_main_process():
        return []

    # 4. What is kept, and its recipe.
    own = run_dir / "checkpoints" / training.CHECKPOINT
    done = own if own.is_file() else checkpoint  # one that had no update left to make
    assert done is not None
    last: dict[str, Tensor] = torch.load(done, weights_only=True, map_location="cpu")["state_dict"]
    with trainer.precision_plugin.val_step_context():
        preview.last(trainer.global_step, last)
    kept: int | None = preview.best_step() if settings.keep == "best" else trainer.global_step
    changes: dict[str, Any] = {}
    if kept == 0:
        say("no validation beats the start, whose weights are kept")
    else:
        state = load_file(preview.best) if settings.keep == "best" else last
        changes["weights"] = {name: _save(state, name, run_dir) for name in trained}
    judged: dict[str, Any] = {}
    if settings.keep == "best" and recipes[0].depth is not None and identity["depth"] < recipes[0].depth:
        judged = _judge(config, dataclasses.replace(recipe, **changes, folder=run_dir.path if kept else recipe.folder))
        say(_verdict(judged, identity["depth"], recipes[0].depth))
        if judged["missed"]:
            kept = None
    _write_metrics(config, recipe, bench, run_dir, trainer.global_step, identity["depth"], kept, judged)
    entry = provenance(
        "finetune",
        config,
        run_dir,
        {photo.name: photo.digest for photo in photos} if len(photos) <= LISTED else {},
        depth=identity["depth"],
        components=trained,
        loss=config.loss.name,
        data={"name": config.data.name, "photographs": len(photos), "digest": photos.digest},
        steps=trainer.global_step,
        kept_step=kept,
        batch_size=settings.batch_size,
    )
    if kept is None:
        return [recipes[0].derive(entry, model=bench.model.source, guidance=config.guidance())]
    depth = None if identity["depth"] == bench.model.full_depth else identity["depth"]
    return [recipes[0].derive(entry, model=bench.model.source, guidance=config.guidance(), depth=depth, **changes)]


class Preview:
    """The stage's own sampler on a few fixed photographs that are not trained on: numbers, pictures, a curve.

    Attributes:
        best: file with the trained weights of the best validation so far, by the first of finetune.metrics.
    """

    def __init__(
        self, bench: Bench, student: Any, run_dir: RunDir, config: Config, trained: list[str], *, keep_full: bool
    ) -> None:
        self.bench, self.student, self.run_dir, self.config = bench, student, run_dir, config
        self.trained, self.keep_full = trained, keep_full
        self.trace = run_dir.trace()
        self.best = run_dir / "checkpoints" / "best.safetensors"
        self.references: Tensor | None = None
        self.before: Tensor | None = None

    def __call__(self, step: int) -> dict[str, float]:
        """The metrics of a step; one that is on record, as before an interruption, is not sampled again."""
        row = self.trace.find(step=step) or self._look(step)
        return {name: float("inf") if value is None else value for name, value in row["metrics"].items()}

    def _look(self, step: int) -> dict[str, Any]:
        bench, settings = self.bench, self.config.finetune
        device = self.student.vae.device
        if self.references is None:
            bench.model.pipeline.to(device)
            self.references = bench.references(None, settings.num_inference_steps, "full model")
            if not self.keep_full:
                for name in self.trained:
                    getattr(bench.model.pipeline, name).to("cpu")
        outputs = bench.images(self.student, bench.uniform(settings.num_inference_steps), f"step {step}")
        if not outputs.isfinite().all():
            raise IdcError(f"the validation images of step {step} are no numbers; lower finetune.optimizer.lr")
        values = bench.measure(settings.metrics, outputs, self.references)
        row = {"step": step, "metrics": {name: value.value for name, value in values.items()}}
        if is_main_process():
            numbers = "  ".join(f"{name} {number_or_equal(value.value)}" for name, value in values.items())
            say(f"  step {step:>5}  {numbers}  (validation images)")
            earlier = self.trace.rows
            if settings.keep == "best" and earlier and self._score(row) > max(map(self._score, earlier)):
                files.write_bytes(self.best, save(self._weights()))
            self._draw(row, outputs)
            self.trace.append(row)
        return row

    def last(self, step: int, state: dict[str, Tensor]) -> None:
        """Look at the result too, where no validation fell on the last step.

        Args:
            state: of the LightningModule, with the averaged weights.
        """
        if self.trace.find(step=step) is None:
            for name in self.trained:
                getattr(self.student, name).to(self.student.vae.device).load_state_dict(_part(state, name))
            self._look(step)

    def best_step(self) -> int:
        """Of the validations so far, the start among them; the earlier one of equals."""
        return int(max(self.trace.rows, key=lambda row: (self._score(row), -row["step"]))["step"])

    def _score(self, row: dict[str, Any]) -> float:
        name = self.config.finetune.metrics[0]
        value = row["metrics"][name]
        if value is None:  # all images equal the full model's
            return float("inf")
        return float(value if self.bench.metric(name).higher_is_better else -value)

    def _weights(self) -> dict[str, Tensor]:
        return {
            f"components.{name}.{key}": value.contiguous()
            for name in self.trained
            for key, value in getattr(self.student, name).state_dict().items()
        }

    def _draw(self, row: dict[str, Any], outputs: Tensor) -> None:
        """A row per image: input, full model, pruned model before training, now; and the curve so far."""
        assert self.references is not None
        step, before = row["step"], self.run_dir / "previews" / "before.safetensors"
        if step == 0:
            files.write_bytes(before, save({"images": outputs}))
        if self.before is None and before.is_file():
            self.before = load_file(before)["images"]
        columns: dict[str, Iterable[Tensor]] = {
            "input": [example.image for example in self.bench.examples],
            "full model": self.references,
            "before": outputs if self.before is None else self.before,
            f"step {step}": outputs,
        }
        grid = preview_grid({name: [to_pil(image) for image in images] for name, images in columns.items()})
        files.write_bytes(self.run_dir / "previews" / f"step_{step:06d}.png", grid)
        units = {name: self.bench.metric(name).unit for name in self.config.finetune.metrics}
        files.write_bytes(self.run_dir / "recovery.png", recovery_curve([*self.trace.rows, row], units).data)


def _judge(config: Config, tuned: Recipe) -> dict[str, Any]:
    """Measure a fine-tuned recipe as the depth search measures a depth: its thresholds, values, and what is missed."""
    thresholds = parse_thresholds(config.depth_search.thresholds)
    settings = config.depth_search
    bench = open_bench(config, tuned, num_samples=settings.num_samples)
    references = bench.references(None, config.num_inference_steps, "full model")
    pipeline = bench.model.for_recipe(tuned)
    outputs = bench.images(pipeline, bench.uniform(settings.num_inference_steps), "fine-tuned")
    values = bench.measure(metrics_of(thresholds), outputs, references)
    return {
        "num_images": len(bench.examples),
        "thresholds": [vars(threshold) for threshold in thresholds],
        "metrics": {name: value.value for name, value in values.items()},
        "missed": missed(thresholds, values),
    }


def _verdict(judged: dict[str, Any], depth: int, searched: int) -> str:
    if judged["missed"]:
        return (
            f"depth {depth} misses a threshold, fine-tuned too ({'; '.join(judged['missed'])}): depth {searched} stays"
        )
    values = ", ".join(f"{name} {number_or_equal(value)}" for name, value in judged["metrics"].items())
    return f"depth {depth} holds the thresholds after fine-tuning ({values}); without it {searched} was the smallest"


def _resolution(wanted: int | None, pipeline: Any) -> int:
    """Side of the training crops: the U-Net's own, or one that its halvings divide."""
    if wanted is None:
        return native_size(pipeline)
    multiple = vae_scale_factor(pipeline) * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    if wanted < multiple or wanted % multiple:
        raise IdcError(f"finetune.resolution must be a multiple of {multiple} px, got {wanted}")
    return wanted


def _student(model: Model, recipe: Recipe, trained: list[str]) -> Any:
    """The pruned pipeline with trained components of its own: the full model stays as it is."""
    unknown = [name for name in trained if not isinstance(getattr(model.pipeline, name, None), torch.nn.Module)]
    if unknown:
        networks = [name for name, part in model.pipeline.components.items() if isinstance(part, torch.nn.Module)]
        raise IdcError(f"finetune.components: the pipeline has no network {unknown[0]!r}; it has {', '.join(networks)}")
    pipeline = model.for_recipe(recipe)
    shared = [name for name in trained if getattr(pipeline, name) is getattr(model.pipeline, name)]
    return with_components(pipeline, {name: copy.deepcopy(getattr(pipeline, name)) for name in shared})


def _checkpoint(config: Config, run_dir: RunDir, identity: dict[str, Any]) -> Path | None:
    """Where to go on: this run's own checkpoint, else finetune.checkpoint."""
    own = run_dir / "checkpoints" / training.CHECKPOINT
    given = config.finetune.checkpoint
    path = own if own.is_file() else Path(given) if given else None
    if path is None:
        return None
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except FileNotFoundError:
        raise IdcError(f"finetune.checkpoint={given}: no such file") from None
    except Exception as error:  # torch raises many kinds for a file that is cut short or holds code
        raise IdcError(f"{show(path)} is not a whole checkpoint ({str(error).splitlines()[0][:100]})") from None
    training.check_identity(checkpoint, identity, show(path))
    say(f"continuing at step {checkpoint['global_step']} of {show(path)}")
    return path


def _trainer_arguments(config: Config, run_dir: RunDir) -> dict[str, Any]:
    """What `trainer` says, with our defaults filled in."""
    arguments = dict(config.trainer)
    if arguments.get("accelerator") is None:
        arguments["accelerator"] = {"cuda": "gpu"}.get(config.device.partition(":")[0], config.device)
    if arguments.get("precision") is None:
        gpu = arguments["accelerator"] in ("gpu", "cuda")
        gpu = gpu or (arguments["accelerator"] == "auto" and torch.cuda.is_available())
        arguments["precision"] = "bf16-mixed" if gpu else "32-true"
    whole = config.finetune.ema_decay is not None or config.finetune.keep == "best"
    if "fsdp" in str(arguments.get("strategy")) and whole:
        raise IdcError(
            "sharded weights are neither averaged nor kept at a validation; set finetune.ema_decay=null and "
            "finetune.keep=last with trainer.strategy=fsdp"
        )
    # Lightning counts batches here, we count updates.
    arguments["val_check_interval"] *= arguments["accumulate_grad_batches"]
    arguments["default_root_dir"] = run_dir / "checkpoints"
    return arguments


@part("train")
def _fit(trainer: Any, module: Any, data: Any, checkpoint: Path | None) -> None:
    """Train; Lightning ends the process on signals, which here end the run as any command ends."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if trainer.received_sigterm:
            say("terminated; the same command continues at the last checkpoint")
            sys.exit(128 + signal.SIGTERM)
        raise KeyboardInterrupt from None
    except torch.OutOfMemoryError as error:
        raise IdcError(
            f"the device's memory is full ({str(error).splitlines()[0][:100]}); split updates by "
            "trainer.accumulate_grad_batches, set finetune.gradient_checkpointing=true or lower finetune.resolution"
        ) from None
    except OSError as error:
        raise IdcError(
            f"writing failed ({error.strerror or error}); make room and repeat the command, which continues at the "
            "last whole checkpoint"
        ) from None


def _part(state: dict[str, Tensor], component: str) -> dict[str, Tensor]:
    """A component's own part of the LightningModule's state."""
    prefix = f"components.{component}."
    return {key.removeprefix(prefix): value.contiguous() for key, value in state.items() if key.startswith(prefix)}


def _save(state: dict[str, Tensor], component: str, run_dir: RunDir) -> dict[str, str]:
    """Write a component's trained weights, names as in the full model."""
    path = files.write_bytes(run_dir / f"{component}.safetensors", save(_part(state, component)))
    return {"file": path.name, "sha256": files.file_digest(path)}


def _write_metrics(
    config: Config,
    recipe: Recipe,
    bench: Bench,
    run_dir: RunDir,
    steps: int,
    depth: int,
    kept: int | None,
    judged: dict[str, Any],
) -> None:
    rows = run_dir.trace().rows
    files.write_json(
        run_dir / "metrics.json",
        {
            "version": 1,
            "stage": "finetune",
            "task": recipe.task,
            "model": recipe.model["name"],
            "depth": depth,
            "full_depth": bench.model.full_depth,
            "steps": steps,
            "kept_step": kept,  # 0: the start's weights; null: the recipe that came in goes on
            "batch_size": config.finetune.batch_size,
            "loss": config.loss.name,
            "num_images": len(bench.examples),
            "num_inference_steps": config.finetune.num_inference_steps,
            "before": rows[0]["metrics"],
            "after": rows[-1]["metrics"],
            "judged": judged,
        },
    )
