"""What a sweep keeps beside its jobs: its own file, which jobs failed and why, and when it needs a new table.

Jobs may run in other processes, or on other machines that share the folder; what the launcher's process has to know of
one is therefore a small file in that job's folder.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import OmegaConf

from . import console
from .errors import IdcError
from .runs import files
from .runs.run_dir import read_info

if TYPE_CHECKING:
    from omegaconf import DictConfig

TABLE = "compare"  # the folder of the table, beside the jobs'
_NOTE = ".failed.json"
# The packages of launchers that start other processes; an error of theirs is that one of those was lost.
_LAUNCHERS = ("joblib", "submitit", "ray")


class SweepRefusedError(BaseException):
    """A sweep that must not begin; Hydra turns what else a callback raises into a warning."""


@dataclass(frozen=True)
class Sweep:
    """A sweep of this process.

    Attributes:
        folder: hydra.sweep.dir.
        keys: of the overrides that have several values.
        chosen: whether the user chose the folder, so that the jobs' runs lie in it.
    """

    folder: Path
    keys: frozenset[str]
    chosen: bool

    def failures(self) -> list[IdcError]:
        """What the failed jobs noted, each with the job's name: its number and the values that the sweep gave it."""
        notes = [files.read_json(path, "sweep") for path in self.folder.rglob(_NOTE)]
        notes.sort(key=lambda note: int(note["job"]))
        return [IdcError(f"job {note['job']} ({self._own(note['words'])}): {note['message']}") for note in notes]

    def _own(self, words: Sequence[str]) -> str:
        return " ".join(word for word in words if word.partition("=")[0] in self.keys) or "no values of its own"

    def wants_table(self) -> bool:
        """Whether evaluations lie in the folder that were finished after its table."""
        if not self.chosen or not any(self.folder.rglob("evaluated_recipe.json")):
            return False
        runs = {path.parent for path in self.folder.rglob("run.json")}
        tables = {run for run in runs if run.relative_to(self.folder).parts[0].partition(".")[0] == TABLE}
        return max(map(_finished, runs - tables), default=0.0) > _finished(self.folder / TABLE)


def _finished(run: Path) -> float:
    """When a run was finished, in seconds of the clock; 0 where it was not, or where there is none."""
    info = read_info(run)
    return float(info.get("finished_seconds", 0.0)) if info is not None and info["finished"] else 0.0


class SweepFolder(Callback):  # type: ignore[misc]
    """Looks at hydra.sweep.dir before Hydra writes its multirun.yaml there, over whatever has the name.

    That of another sweep is set aside, as `open_run` does with its jobs' folders. Notes of earlier failures go.

    Attributes:
        begun: the sweep that this process began last.
    """

    begun: ClassVar[Sweep | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        path = Path(config.hydra.sweep.dir) / "multirun.yaml"
        if os.path.lexists(path):
            _set_aside(path, OmegaConf.to_yaml(config))
        for note in path.parent.rglob(_NOTE):
            note.unlink()
        overrides = OverridesParser.create().parse_overrides(_texts(config.hydra.overrides.task))
        keys = frozenset(o.get_key_element() for o in overrides if o.is_sweep_override())
        chosen = any(word.lstrip("+").startswith("hydra.sweep.dir=") for word in _texts(config.hydra.overrides.hydra))
        SweepFolder.begun = Sweep(path.parent, keys, chosen)


def _texts(overrides: Any) -> list[str]:
    """Overrides as they were given: one may hold ${...}, which is not to be resolved here."""
    texts = OmegaConf.to_container(overrides, resolve=False)
    return [str(text) for text in texts] if isinstance(texts, list) else []


def _set_aside(path: Path, new: str) -> None:
    """Keep the multirun.yaml of another sweep under a free name."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() and not path.is_symlink() else ""
    if not text.startswith("hydra:\n  run:\n"):  # as Hydra's own begin
        raise SweepRefusedError(
            f"{path.parent} holds {path.name}, which no sweep has made and this one would write over; choose "
            "another hydra.sweep.dir"
        )
    if text != new:
        free = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
        path.rename(next(aside for aside in free if not os.path.lexists(aside)))


def note_failure(job: Any, message: str) -> None:
    """Leave in a job's folder why it failed, and say it in its own output."""
    console.warn(message)
    note = {"job": job.job.num, "words": _texts(job.overrides.task), "message": message}
    folder = Path(str(job.runtime.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / _NOTE, note)


def lost_job(error: Exception) -> IdcError | None:
    """One line for a launcher's error that a process of its jobs ended early; None for any other error."""
    if type(error).__module__.partition(".")[0] not in _LAUNCHERS:
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")] or [type(error).__name__]
    first = lines[0].partition(". ")[0]
    why = first if len(lines) == 1 else f"{first}: {lines[-1]}"
    return IdcError(
        f"the process of a job ended early: {why}; the same command with the same hydra.sweep.dir runs what is missing"
    )
