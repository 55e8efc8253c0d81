"""Watching a fine-tuning: pictures and numbers of a few photographs that are not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from ..bench.bench import Bench
from ..console import say
from ..core.plan import Plan
from ..errors import IdcError, NotFiniteError
from ..images.pictures import to_pil
from ..metrics._metric import in_words, perfect_ones
from ..report.figures import recovery_curve
from ..report.finetuning import preview_grid
from ..runs import cache, files
from ..runs.places import is_main_process
from ..runs.run_dir import RunDir
from ..sources.load import forget_shared_model


class Preview:
    """The stage's own sampler on a few fixed photographs that are not trained on: numbers, pictures, a curve.

    Args:
        student: the pruned pipeline that is trained.
        plan: how its pictures are sampled, and the full model's, whose results they are compared with.
        trained: names of the components that are trained.
        metrics: what is measured; the first one decides which validation is the best.
        keep_best: keep the trained weights of the best validation so far.
        keep_full: keep the full model's networks after the first look, because training distils from them. Else their
            weights go, since nothing needs them any more, and leave the shapes.

    Attributes:
        best: file with the weights of the best validation so far.
    """

    def __init__(
        self,
        bench: Bench,
        student: Any,
        plan: Plan,
        run_dir: RunDir,
        *,
        trained: Sequence[str],
        metrics: Sequence[str],
        keep_best: bool,
        keep_full: bool,
    ) -> None:
        self.bench, self.student, self.plan, self.run_dir = bench, student, plan, run_dir
        self.trained, self.metrics, self.keep_best, self.keep_full = list(trained), list(metrics), keep_best, keep_full
        self.trace = run_dir.trace()
        self.best = run_dir / "checkpoints" / "best.safetensors"
        self.references: Tensor | None = None
        self.before: Tensor | None = None

    def __call__(self, step: int) -> dict[str, float]:
        """The metrics of a step. A step that is in the trace already, as after an interruption, is read from there."""
        row = self.trace.find(step=step) or self._look(step)
        numbers = {name: value for name, value in row["metrics"].items() if value is not None}
        return numbers | dict.fromkeys(row.get("perfect", ()), math.inf)

    def _look(self, step: int) -> dict[str, Any]:
        bench, device = self.bench, self.student.vae.device
        if self.references is None:
            bench.model.pipeline.to(device)
            self.references = bench.references(None, self.plan, "full model")
            if not self.keep_full:
                forget_shared_model()
                for name in self.trained:
                    getattr(bench.model.pipeline, name).to("meta")
        try:
            outputs = bench.images(self.student, self.plan, f"step {step}")
        except NotFiniteError as error:
            advice = "" if step == 0 else "; lower finetune.optimizer.lr"
            raise IdcError(f"the validation images of step {step} hold NaN or infinity: {error}{advice}") from None
        values = bench.measure(self.metrics, outputs, self.references)
        nothing = {name: value.note for name, value in values.items() if value.value is None and not value.perfect}
        if self.keep_best and self.metrics[0] in nothing:
            raise IdcError(
                f"finetune.keep=best judges validations by {self.metrics[0]}, which has nothing to compare with here "
                f"({nothing[self.metrics[0]]}); name another first in finetune.metrics, or set finetune.keep=last"
            )
        numbers = {name: value.value for name, value in values.items()}
        row: dict[str, Any] = {"step": step, "metrics": numbers, **perfect_ones(values)}
        if nothing:
            row["notes"] = nothing
        if is_main_process():
            cells = "  ".join(f"{name} {in_words(v.value, perfect=v.perfect)}" for name, v in values.items())
            say(f"  step {step:>5}  {cells}  (validation images)")
            earlier = self.trace.rows
            if self.keep_best and earlier and self._score(row) > max(map(self._score, earlier)):
                with files.whole(self.best) as temporary:
                    save_file(self._weights(), temporary)
                row["weights"] = files.file_digest(self.best)
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
                getattr(self.student, name).to(self.student.vae.device).load_state_dict(part_of(state, name))
            self._look(step)

    def best_step(self) -> int:
        """The step of the best validation so far, the start included; of equal ones the earliest."""
        return int(max(self.trace.rows, key=lambda row: (self._score(row), -row["step"]))["step"])

    def best_weights(self) -> dict[str, Tensor]:
        """The trained weights of the best validation, as they were written.

        Raises:
            IdcError: the file is missing or was damaged since.
        """
        noted = {row["step"]: row.get("weights") for row in self.trace.rows}[self.best_step()]
        if not self.best.is_file() or files.file_digest(self.best) != noted:
            raise IdcError(
                f"{self.best}, the weights of step {self.best_step()}, is missing or damaged; remove "
                f"{self.run_dir.path} to train again"
            )
        return load_file(self.best)

    def _score(self, row: dict[str, Any]) -> float:
        """The first metric as a number of which more is better; the least that there is where nothing was compared."""
        name = self.metrics[0]
        value = row["metrics"][name]
        if name in row.get("perfect", ()):
            return math.inf
        if value is None:
            return -math.inf
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
            cache.keep(before, {"images": outputs.contiguous()}, save)
        if self.before is None:
            kept = cache.read(before, load)
            self.before = None if kept is None else kept["images"]
        columns: dict[str, Iterable[Tensor]] = {
            "input": [example.image for example in self.bench.examples],
            "full model": self.references,
            **({} if self.before is None else {"before": self.before}),
            f"step {step}": outputs,
        }
        grid = preview_grid({name: [to_pil(image) for image in images] for name, images in columns.items()})
        files.write_bytes(self.run_dir / "previews" / f"step_{step:06d}.png", grid)
        units = {name: self.bench.metric(name).unit for name in self.metrics}
        files.write_bytes(self.run_dir / "recovery.png", recovery_curve([*self.trace.rows, row], units).data)


def part_of(state: dict[str, Tensor], component: str) -> dict[str, Tensor]:
    """A component's own part of the LightningModule's state."""
    prefix = f"components.{component}."
    return {key.removeprefix(prefix): value.contiguous() for key, value in state.items() if key.startswith(prefix)}
