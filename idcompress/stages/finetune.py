"""Train the pruned model back to quality, on one device or many"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..adapters import checkpoints, training
from ..adapters.devices import quiet_lightning
from ..adapters.pipeline import native_size, vae_scale_factor, with_copies
from ..bench.bench import Bench
from ..bench.early_stop import judge
from ..bench.selection import choose_photographs
from ..bench.thresholds import parse_thresholds
from ..bench.training_samples import LISTED, TrainingSamples, held_out
from ..config import Config, FinetuneConfig, instantiate
from ..console import progress_bar, say, warn
from ..errors import IdcError
from ..images.photo_sets import PhotographSet, digests_of
from ..metrics._metric import in_words, perfect_ones
from ..runs import files
from ..runs.places import is_main_process
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..runs.timing import part
from ..sources.model import Model
from ._preview import Preview, part_of
from ._run import provenance, show, with_depth
from ._values import bench_for, data_of, plan_of, uniform_plan

CUT_ENDS = "cut_ends"  # stands for the patterns of what the cut gave other inputs
SAID_FROM = 1e9  # bytes of memory: a smaller fine-tuning runs anywhere


@dataclasses.dataclass
class Session:
    """A fine-tuning: what is trained, on what, and how it is watched.

    Attributes:
        recipe: what is trained: the given recipe, cut to the depth that was asked for.
        bench: the full model and the validation images.
        student: the pruned pipeline, with trained components of its own.
        trained: their names.
        parameters: names "component.parameter" of what is trained in them.
        photos: the data set's photographs; the last ones are held out for validation.
        identity: what a checkpoint must have in common with this run to be continued by it.
    """

    recipe: Recipe
    bench: Bench
    student: Any
    trained: list[str]
    parameters: set[str]
    photos: PhotographSet
    samples: TrainingSamples
    preview: Preview
    identity: dict[str, Any]

    @property
    def depth(self) -> int | None:
        """Levels that are kept, where the cut is one by depth."""
        return self.identity.get("depth")

    @property
    def kept(self) -> str:
        """What is kept, in words."""
        return self.bench.model.words(self.recipe.cut)


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Fine-tune the pruned networks of a recipe and hand on one with their weights.

    With finetune.keep=best the weights before training are kept if no validation beats them, and a cut deeper than the
    given recipe's is dropped, with its weights, if it misses a threshold even after training.

    Writes checkpoints/last.ckpt, logs/, previews/, trace.jsonl (a row per validation), recovery.png, metrics.json and
    a .safetensors file per trained component.

    Raises:
        IdcError: nothing is cut, a setting cannot be, images cannot be read, the loss is no number, the disk is full.
    """
    if with_depth(recipes[0], config).cut is None:
        raise IdcError(
            "nothing is cut, so there is nothing to recover; give depth=N, or a depth search's recipe by recipe=FILE"
        )
    quiet_lightning()
    session = _prepare(config, recipes[0], run_dir)
    module = _module(config, session)
    number = sum(p.numel() for p in module.parameters() if p.requires_grad)
    say(
        f"fine-tuning {', '.join(session.trained)} at {session.kept}: "
        f"{number:,} parameters, {session.samples.count} photographs, {config.finetune.batch_size} images per update"
    )
    _say_needs(config, session, number)
    trainer, last = _train(config, session, module, run_dir)
    if not is_main_process():
        return []
    return [_hand_on(config, session, recipes[0], run_dir, int(trainer.global_step), last)]


# --- before training --------------------------------------------------------------------------------------------------


def _prepare(config: Config, recipe: Recipe, run_dir: RunDir) -> Session:
    """Load the full model and its pruned copy in float32 on the CPU; Lightning moves them to their device."""
    recipe, settings = with_depth(recipe, config), config.finetune
    where = dataclasses.replace(config, device="cpu", dtype="float32")
    photos = choose_photographs(data_of(config), recipe, "train")
    shown = held_out(photos, settings.num_samples)
    bench = bench_for(where, recipe, photos=shown, num_samples=settings.num_samples)
    if _distils(config) and bench.model.is_whole(recipe.cut):
        raise IdcError(
            f"depth {bench.model.full_depth} is the whole model, so there is nothing to recover; give a smaller depth, "
            "or train it on the data themselves by loss=task"
        )
    student, parameters = _student(bench.model, recipe, settings, bench.task.trained)
    trained = list(dict.fromkeys(name.partition(".")[0] for name in parameters))
    preview = Preview(
        bench,
        student,
        uniform_plan(config, bench.model.process, settings.num_inference_steps),
        run_dir,
        trained=trained,
        metrics=settings.metrics,
        keep_best=settings.keep == "best",
        keep_full=_distils(config),
    )
    samples = TrainingSamples(
        bench.task,
        photos,
        size=_resolution(settings.resolution, bench.model.pipeline),
        count=len(photos) - len(shown),
        seed=config.seed,
        prompts=config.prompts(),
        flip=settings.flip,
        sharpened=bench.task.sharpens_training if settings.sharpen is None else settings.sharpen,
    )
    cut = recipe.cut
    identity: dict[str, Any] = {
        "task": recipe.task,
        **(
            {"depth": recipe.depth or bench.model.full_depth}
            if cut is None or recipe.depth is not None
            else {"cut": cut.to_json()}
        ),
        "model": bench.model.digest,
        "components": trained,
        "parameters": settings.parameters,
    }
    return Session(recipe, bench, student, trained, set(parameters), photos, samples, preview, identity)


def _distils(config: Config) -> bool:
    return config.loss.output > 0 or config.loss.features > 0


def _student(model: Model, recipe: Recipe, settings: FinetuneConfig, own: Sequence[str]) -> tuple[Any, list[str]]:
    """The pruned pipeline with copies of the networks to train, the rest being shared with the full model.

    Args:
        own: the networks that the task trains.

    Returns:
        the pipeline, and the names "component.parameter" of what is trained, in order.
    """
    wanted = settings.components or list(own)
    unknown = [name for name in wanted if not isinstance(getattr(model.pipeline, name, None), torch.nn.Module)]
    if unknown:
        networks = [name for name, part in model.pipeline.components.items() if isinstance(part, torch.nn.Module)]
        raise IdcError(f"finetune.components: the pipeline has no network {unknown[0]!r}; it has {', '.join(networks)}")
    pruned = model.for_recipe(recipe)
    parts = {name: part for name, part in pruned.components.items() if isinstance(part, torch.nn.Module)}
    ends = model.cut_ends(pruned, recipe.cut)
    patterns = [entry for name in settings.parameters for entry in (ends if name == CUT_ENDS else [name])]
    matching = training.matching_parameters(parts, patterns)
    chosen = [n for w in wanted for n in (f"{w}.{k}" for k, _ in parts[w].named_parameters()) if n in matching]
    if not chosen:
        raise IdcError(
            f"finetune.parameters={settings.parameters} chooses nothing of {', '.join(wanted)} to train; change it or "
            "finetune.components"
        )
    return with_copies(pruned, dict.fromkeys(name.partition(".")[0] for name in chosen)), chosen


def _resolution(wanted: int | None, pipeline: Any) -> int:
    """Side of the training crops: the U-Net's own, or one that its halvings divide."""
    if wanted is None:
        return native_size(pipeline)
    multiple = vae_scale_factor(pipeline) * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    if wanted < multiple or wanted % multiple:
        raise IdcError(f"finetune.resolution must be a multiple of {multiple} px, got {wanted}")
    return wanted


def _say_needs(config: Config, session: Session, number: int) -> None:
    """What a fine-tuning of some size will take of memory and disk, before it takes it.

    Args:
        number: of trained parameters.
    """
    settings, pipeline = config.finetune, session.bench.model.pipeline
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    held = {name: sum(p.numel() for p in part.parameters()) for name, part in networks.items()}
    whole = sum(p.numel() for name in session.trained for p in getattr(session.student, name).parameters())
    frozen = whole - number + sum(n for name, n in held.items() if _distils(config) or name not in session.trained)
    moments = 2 if "adam" in str(settings.optimizer.get("_target_", "")).lower() else 1
    average = settings.ema_decay is not None
    # All in float32; 2: weights and gradients. Frozen weights of a trained network are averaged and saved, too.
    memory = 4 * (frozen + number * (2 + moments) + whole * average)
    disk = 2 * 4 * (number * moments + whole * (1 + average))  # the newest checkpoint, and the one before it
    if memory < SAID_FROM:
        return
    at_once = max(1, settings.batch_size // int(config.trainer["accumulate_grad_batches"]))
    recomputed = "" if settings.gradient_checkpointing else "; finetune.gradient_checkpointing=true keeps fewer of them"
    say(
        f"it needs {memory / 1e9:.1f} GB of memory for weights, gradients and optimizer, and more for the activations "
        f"of {at_once} {'image' if at_once == 1 else 'images'} at a time (finetune.batch_size over "
        f"trainer.accumulate_grad_batches and the devices)"
        f"{recomputed}; and {disk / 1e9:.1f} GB of disk until it is done"
    )


# --- training ---------------------------------------------------------------------------------------------------------


def _module(config: Config, session: Session) -> training.Finetuning:
    """What Lightning trains."""
    settings, bench = config.finetune, session.bench
    steps = config.num_inference_steps if settings.timesteps == "inference" else None
    process, dropout = bench.model.process, settings.conditioning_dropout
    timesteps = range(process.num_train_timesteps) if steps is None else [int(t) for t in bench.uniform(steps)]
    module = training.Finetuning(
        bench.task,
        session.student,
        bench.model.pipeline if _distils(config) else None,
        trained=session.trained,
        parameters=session.parameters,
        identity=session.identity,
        weights={"task": config.loss.task, "output": config.loss.output, "features": config.loss.features},
        timesteps=timesteps,
        conditioning_dropout=bench.task.conditioning_dropout if dropout is None else dropout,
        seed=config.seed,
        optimizer=partial(instantiate, settings.optimizer, "finetune.optimizer"),
        schedule=settings.schedule,
        warmup_steps=settings.warmup_steps,
        preview=session.preview,
        matched=bench.model.matched_features(session.student, session.recipe.cut),
    )
    networks: list[Any] = list(module.components.values())
    for component in networks:
        if settings.gradient_checkpointing:
            component.enable_gradient_checkpointing()
        if settings.compile:
            component.compile()
    return module


def _train(
    config: Config, session: Session, module: training.Finetuning, run_dir: RunDir
) -> tuple[Any, dict[str, Tensor]]:
    """Train to the end: the trainer, and the state of its last checkpoint, which holds the result."""
    settings, folder = config.finetune, run_dir / "checkpoints"
    checkpoint = _checkpoint(config, run_dir, session.identity)
    callbacks: list[Any] = [
        training.UnreadableImages(len(session.photos), warn),
        training.Progress(say, progress_bar),
        training.checkpoints(folder, settings.checkpoint_every_n_steps),
        training.FinalCheckpoint(folder / checkpoints.CHECKPOINT),
    ]
    if settings.ema_decay is not None:
        callbacks.append(training.average_weights(settings.ema_decay))
    data = training.TrainingData(session.samples, settings.batch_size, settings.num_workers)
    loggers = [instantiate(node, f"finetune.logger.{name}") for name, node in settings.logger.items()]
    trainer = training.make_trainer(_trainer_arguments(config, run_dir), run_dir.path, callbacks, loggers)
    _fit(trainer, module, data, checkpoint)
    if not is_main_process():
        return trainer, {}
    done = folder / checkpoints.CHECKPOINT
    if not done.is_file():  # the one that was given had already reached max_steps, so nothing was trained
        assert checkpoint is not None
        done = checkpoint
    last: dict[str, Tensor] = checkpoints.read(done)["state_dict"]
    with trainer.precision_plugin.val_step_context():
        session.preview.last(trainer.global_step, last)
    if not config.finetune.keep_checkpoint:
        run_dir.scaffolding.append(folder)
    return trainer, last


def _checkpoint(config: Config, run_dir: RunDir, identity: dict[str, Any]) -> Path | None:
    """Where to go on: this run's own newest whole checkpoint, else finetune.checkpoint.

    Raises:
        IdcError: none of this run's checkpoints is whole, or the given one is not or is of another model.
    """
    folder, given = run_dir / "checkpoints", config.finetune.checkpoint
    try:
        path, wrong = checkpoints.newest(folder)
    except FileNotFoundError as error:
        if error.args[0]:
            raise IdcError(f"{'; '.join(error.args[0])}; remove {show(folder)} to train from the start") from None
        if given is None:
            return None
        path, wrong = _given(given), []
    for reason in wrong:
        warn(f"{reason}; the one before it is taken")
        if is_main_process():
            (folder / checkpoints.CHECKPOINT).unlink(missing_ok=True)  # or the next one would push out the whole one
    checkpoint = checkpoints.read(path)
    training.check_identity(checkpoint, identity, show(path))
    say(f"continuing at step {checkpoint['global_step']} of {show(path)}")
    return path


def _given(name: str) -> Path:
    """The file that finetune.checkpoint names, which is whole."""
    try:
        checkpoints.check(Path(name))
    except FileNotFoundError:
        raise IdcError(f"finetune.checkpoint={name}: no such file") from None
    return Path(name)


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
    """Train, and turn Lightning's SystemExit after a signal into the way every other command ends on one."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if trainer.received_sigterm:
            say(f"terminated; the same command {_continues(trainer, checkpoint)}")
            sys.exit(128 + signal.SIGTERM)
        raise KeyboardInterrupt(f"interrupted; the same command {_continues(trainer, checkpoint)}") from None
    except OSError as error:
        raise IdcError(
            f"writing failed ({error.strerror or error}); make room and repeat the command, which "
            f"{_continues(trainer, checkpoint)}"
        ) from None


def _continues(trainer: Any, checkpoint: Path | None) -> str:
    """What the same command will do: there may be no checkpoint yet."""
    there = checkpoint is not None or (Path(trainer.default_root_dir) / checkpoints.CHECKPOINT).is_file()
    return "continues at the last checkpoint" if there else "starts again, because no checkpoint was written yet"


# --- after training ---------------------------------------------------------------------------------------------------


def _hand_on(
    config: Config, session: Session, before: Recipe, run_dir: RunDir, steps: int, last: dict[str, Tensor]
) -> Recipe:
    """Decide what is kept, write it, and make its recipe.

    Args:
        before: the recipe that came in.
        steps: updates that were made.
        last: state of the last one.
    """
    settings, recipe, preview = config.finetune, session.recipe, session.preview

    # 1. the weights of the best validation, of the last update, or of the start
    kept: int | None = preview.best_step() if settings.keep == "best" else steps
    weights = recipe.weights
    if kept == 0:
        say("no validation beats the start, whose weights are kept")
    else:
        state = preview.best_weights() if settings.keep == "best" else last
        model = session.bench.model
        weights = {name: _save(state, name, model.stored_dtype(name), run_dir) for name in session.trained}

    # 2. a cut that is deeper than the recipe's must hold the thresholds again
    judged: dict[str, Any] = {}
    deeper = before.depth is not None and session.depth is not None and session.depth < before.depth
    if settings.keep == "best" and deeper:
        folder = run_dir.path if kept else recipe.folder
        judged = _judge(config, dataclasses.replace(recipe, weights=weights, folder=folder))
        say(_verdict(judged, session.recipe.kept, before.kept))
        if judged["missed"]:
            kept = None

    # 3. what was done
    _write_metrics(config, session, run_dir, steps, kept, judged)
    listed = digests_of(session.photos, range(len(session.photos))) if len(session.photos) <= LISTED else {}
    entry = provenance(
        "finetune",
        config,
        run_dir,
        listed,
        depth=session.depth,
        components=session.trained,
        loss=config.loss.name,
        data={"name": config.data.name, "photographs": len(session.photos), "digest": session.photos.digest},
        steps=steps,
        kept_step=kept,
        batch_size=settings.batch_size,
    )
    plan = plan_of(config, before, session.bench.model.process)
    made = before.derive(entry, model=session.bench.model.source, plan=plan)
    if kept is None:
        return made
    changes: dict[str, Any] = {"weights": weights, "folder": None} if kept else {}
    cut = None if session.bench.model.is_whole(recipe.cut) else recipe.cut
    return dataclasses.replace(made, cut=cut, **changes)


def _judge(config: Config, tuned: Recipe) -> dict[str, Any]:
    """Measure a fine-tuned recipe as the depth search measures a depth: its thresholds, values, and what is missed."""
    thresholds, settings = parse_thresholds(config.depth_search.thresholds), config.depth_search
    bench = bench_for(config, tuned, num_samples=settings.num_samples)
    original, plan = (
        uniform_plan(config, bench.model.process, n) for n in (config.num_inference_steps, settings.num_inference_steps)
    )
    judged = judge(
        bench,
        lambda positions: bench.references(tuned, plan, "fine-tuned", positions),  # a timestep search wants them again
        lambda positions: bench.references(None, original, "full model", positions),
        thresholds,
        config.early_stop,
    )
    return {
        **judged.counts(bench),
        "thresholds": [vars(threshold) for threshold in thresholds],
        "metrics": {name: value.value for name, value in judged.values.items()},
        **perfect_ones(judged.values),
        "missed": judged.missed,
    }


def _verdict(judged: dict[str, Any], kept: str, searched: str) -> str:
    if judged["missed"]:
        return f"{kept} misses a threshold, fine-tuned too ({'; '.join(judged['missed'])}): {searched} stays"
    perfect = judged.get("perfect", ())
    values = ", ".join(
        f"{name} {in_words(value, perfect=name in perfect)}" for name, value in judged["metrics"].items()
    )
    return f"{kept} holds the thresholds after fine-tuning ({values}); without it {searched} was the smallest"


def _save(state: dict[str, Tensor], component: str, dtype: torch.dtype, run_dir: RunDir) -> dict[str, str]:
    """Write a component's trained weights, names and dtype as in the full model's files."""
    path = run_dir / f"{component}.safetensors"
    with files.whole(path) as temporary:
        save_file({name: tensor.to(dtype) for name, tensor in part_of(state, component).items()}, temporary)
    return {"file": path.name, "sha256": files.file_digest(path)}


def _write_metrics(
    config: Config, session: Session, run_dir: RunDir, steps: int, kept: int | None, judged: dict[str, Any]
) -> None:
    rows = run_dir.trace().rows
    files.write_json(
        run_dir / "metrics.json",
        {
            "version": 1,
            "stage": "finetune",
            "task": session.recipe.task,
            "model": session.recipe.model["name"],
            "depth": session.depth,
            "full_depth": session.bench.model.full_depth,
            **({} if session.depth is not None else {"kept": session.kept}),
            "steps": steps,
            "kept_step": kept,  # 0: the weights before training; null: the deeper cut was dropped
            "batch_size": config.finetune.batch_size,
            "loss": config.loss.name,
            "num_images": len(session.bench.examples),
            "num_inference_steps": config.finetune.num_inference_steps,
            "before": rows[0]["metrics"],
            "after": rows[-1]["metrics"],
            "judged": judged,
        },
    )
