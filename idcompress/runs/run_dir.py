"""Run folders: outputs/<task>/<model>/<stage>/<time>, locked while in use, continued when unfinished."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..console import warn
from ..errors import IdcError
from . import files
from .places import is_main_process
from .trace import Trace

OUTPUTS = Path("outputs")
# Where a recipe may come from: the stages before each one. The chain's order is the paper's.
CHAIN = {"depth_search": 1, "finetune": 2, "tsopt": 3, "plan": 3, "compress": 3}
AFTER_THE_CHAIN = 4
BOOKKEEPING = (".lock", "run.json", "config.yaml", "environment.json", "log.txt")
# What else a run may write into its folder, and the folders that some stages make there. In a folder that the user
# chose, nobody else's file may have such a name.
RESULTS = (
    *("recipe.json", "trace.jsonl", "written.jsonl", "metrics.json", "per_image.csv", "evaluated_recipe.json"),
    *("timing.json", "profile.json", "levels.png", "recovery.png", "report.html", "report.md"),
    *("plan.png", "plan.svg"),
    *("study.json", "study.csv", "study.png", "study.svg"),
)
RESULT_FOLDERS = {
    "evaluate": ("images", "depth_skipped"),
    "finetune": ("checkpoints", "previews", "logs"),
    "compress": (*CHAIN, "paper", "evaluate", "profile", "report", "translate", "export", "study"),
}
# Results that others read: run.json of a finished run has their digests.
READ_BY_OTHERS = ("trace.jsonl", "metrics.json", "per_image.csv", "evaluated_recipe.json")
FROM_THE_FULL_MODEL = ("depth_search", "compress")


@dataclass
class RunDir:
    """One run's folder.

    Attributes:
        path: the folder.
        resumed: whether an interrupted run of the same command is being continued.
        explicit: whether the user chose the folder, so that other things may lie in it.
        scaffolding: folders inside it that only an unfinished run needs.
    """

    path: Path
    resumed: bool
    info: dict[str, Any]
    _lock: IO[bytes] | None = field(default=None, repr=False)
    explicit: bool = False
    scaffolding: list[Path] = field(default_factory=list)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def trace(self, name: str = "trace.jsonl") -> Trace:
        return Trace(self.path / name)

    def child(self, stage: str, digest: str) -> RunDir:
        """The folder of a stage inside this run; finished children are kept as they are."""
        path = self.path / stage
        info = read_info(path)
        if info is not None and info["digest"] != digest:
            raise IdcError(f"{path} belongs to another configuration; remove {self.path} to start again")
        fresh = {**self.info, "stage": stage, "digest": digest, "finished": False}
        run = RunDir(path, info is not None, info or fresh)
        if is_main_process():
            run._write_info()
        return run

    @property
    def finished(self) -> bool:
        return bool(self.info["finished"])

    def finish(self) -> None:
        """Mark the run as complete; its recipes can now be found by later stages. The scaffolding goes.

        Raises:
            IdcError: the folder vanished in the meantime, with what the run had written.
        """
        if self._vanished():
            self.release()
            raise IdcError(f"{self.path} was taken away while the run was using it; the same command begins it again")
        self.info["finished"] = True
        self.info["results"] = {
            str(path.relative_to(self.path)): files.file_digest(path)
            for place in ("", "steps_*/")
            for name in READ_BY_OTHERS
            for path in sorted(self.path.glob(f"{place}{name}"))
        }
        self.info["finished_seconds"] = time.time()
        self._write_info()
        for folder in self.scaffolding:
            files.remove_folder(folder)
        self.release()

    def release(self) -> None:
        """Let other processes have the folder; the end of this one does it too."""
        if self._vanished():  # what was written since is this run's, as the same command must see
            with suppress(OSError):
                self._write_info()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _vanished(self) -> bool:
        """Whether the folder's run.json, which is written first, is gone from it."""
        return not self.finished and self.path.is_dir() and not (self.path / "run.json").is_file()

    def discard_if_empty(self) -> None:
        """Undo the opening of a new run without any result: a mistake was found before any work.

        A folder that the user chose stays, with what was in it before; of ours nothing does.
        """
        self.release()
        files_here = [path for path in self.path.rglob("*") if path.is_file()]
        ours = [path for path in files_here if path.name in BOOKKEEPING]
        if self.resumed or (len(ours) < len(files_here) and self.info["own_folder"]):
            return
        if self.explicit:
            for name in BOOKKEEPING:
                (self.path / name).unlink(missing_ok=True)
            return
        shutil.rmtree(self.path)
        for folder in (self.path.parents[i] for i in range(4)):  # stage, model, task, outputs
            if any(folder.iterdir()):
                break
            folder.rmdir()

    def _write_info(self) -> None:
        files.write_json(self.path / "run.json", self.info)


def open_run(
    stage: str, task: str, model: str, digest: str, explicit: Path | None = None, *, keep_finished: bool = False
) -> RunDir:
    """Open the folder of a run: the newest unfinished one with the same digest, else a new one.

    Args:
        stage, task, model: names that make up the path below ./outputs.
        digest: of the resolved configuration and the input recipe.
        explicit: a folder that the user chose (hydra.run.dir); what another run left there is set aside, not lost.
        keep_finished: open a finished run of the same digest in that folder as it is, if its results are whole.

    Raises:
        IdcError: the folder cannot be written, or another running process holds it.
    """
    info = {"stage": stage, "task": task, "model": model, "digest": digest, "finished": False}
    if not is_main_process():
        if explicit is None:
            raise IdcError("the further processes of a distributed run want hydra.run.dir=FOLDER, one for all of them")
        return RunDir(explicit, True, read_info(explicit) or info)  # of the first process, whose words were others
    try:
        if explicit is not None:
            return _open_explicit(explicit, info, keep_finished=keep_finished)
        parent = OUTPUTS / task / model / stage
        parent.mkdir(parents=True, exist_ok=True)
        for path in sorted(parent.iterdir(), reverse=True):
            found = read_info(path)
            if found is not None and found["digest"] == digest and not found["finished"]:
                lock = _try_lock(path)
                if lock is not None:
                    files.remove_temporaries(path)
                    return RunDir(path, True, found, lock)
        return _create(parent, info)
    except OSError as error:
        where = explicit or OUTPUTS
        raise IdcError(f"cannot write the run folder under {where} ({error.strerror}); set hydra.run.dir") from None


def _create(parent: Path, info: dict[str, Any]) -> RunDir:
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for number in range(1, 1000):
        path = parent / (stamp if number == 1 else f"{stamp}_{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # another run began in the same second
            continue
        return _begin(path, info)
    raise IdcError(f"no free run folder under {parent}")


def _begin(path: Path, info: dict[str, Any], *, explicit: bool = False) -> RunDir:
    info = {**info, "own_folder": not explicit or not any(path.iterdir())}
    lock = _try_lock(path)
    if lock is None:
        raise IdcError(f"another run is using {path}; choose another hydra.run.dir or wait for it")
    run = RunDir(path, False, info, lock, explicit)
    run._write_info()
    return run


def _open_explicit(path: Path, info: dict[str, Any], *, keep_finished: bool) -> RunDir:
    path.mkdir(parents=True, exist_ok=True)
    found = read_info(path)
    if found is None:
        _refuse_strangers(path, str(info["stage"]))
        return _begin(path, info, explicit=True)
    lock = _try_lock(path)
    if lock is None:
        raise IdcError(f"another run is using {path}; choose another hydra.run.dir or wait for it")
    if found["digest"] == info["digest"] and not found["finished"]:
        if found.get("own_folder"):
            files.remove_temporaries(path)
        return RunDir(path, True, found, lock, explicit=True)
    lock.close()
    if keep_finished and found["digest"] == info["digest"] and _is_whole(path):
        return RunDir(path, True, found, explicit=True)
    if not found.get("own_folder") or Path.cwd().resolve().is_relative_to(path.resolve()):
        raise IdcError(f"{path} holds another run beside other things; choose another hydra.run.dir")
    number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.{n}").exists())
    path.rename(path.with_name(f"{path.name}.{number}"))
    path.mkdir()
    return _begin(path, info, explicit=True)


def _refuse_strangers(path: Path, stage: str) -> None:
    """Raise IdcError if a folder that no run has made holds something that a run would write over."""
    wanted = (*BOOKKEEPING, *RESULTS, *RESULT_FOLDERS.get(stage, ()))
    for entry in sorted(path.iterdir()):
        name = entry.name
        empty_lock = name == ".lock" and entry.is_file() and not entry.stat().st_size
        if (name in wanted and not empty_lock) or name.endswith(".safetensors") or name.startswith("steps_"):
            raise IdcError(
                f"{path} holds {name}, which no run has made and a run would write over; choose another hydra.run.dir"
            )


def _try_lock(path: Path) -> IO[bytes] | None:
    """Hold the folder until the process ends, however it ends; None if another process holds it."""
    file = (path / ".lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def read_info(path: Path) -> dict[str, Any] | None:
    """What a run folder says of its run; None for any other folder."""
    file = path / "run.json"
    if not file.is_file():
        return None
    info = files.read_json(file, "run folder")
    return info if _is_info(info) else None


def _is_info(info: dict[str, Any]) -> bool:
    """Whether a run.json is one of this program's, by its fields and their types."""
    return (
        all(isinstance(info.get(name), str) for name in ("stage", "digest"))
        and isinstance(info.get("finished"), bool)
        and isinstance(info.get("finished_seconds", 0.0), (int, float))
        and isinstance(info.get("recipes", []), list)
    )


def check_results(run: Path) -> None:
    """Refuse the folder of a finished run in which a result is missing, or no longer as the run wrote it.

    Raises:
        IdcError: naming the file. Runs that note no digests, like those of an earlier version, pass.
    """
    noted = (read_info(run) or {}).get("results")
    for name, digest in noted.items() if isinstance(noted, dict) else ():
        path = run / str(name)
        if not path.is_file():
            raise IdcError(f"{path} is missing, which the run had written; repeat the run")
        if files.file_digest(path) != digest:
            raise IdcError(f"{path} was changed or damaged after the run had written it; repeat the run")


def was_set_aside(run: Path, top: Path) -> bool:
    """Whether a run below `top`, or a folder that it lies in, is NAME.1 or so beside the NAME that came after it."""
    between = [run, *run.parents][: len(run.relative_to(top).parts)]
    return any(path.suffix[1:].isdigit() and path.with_suffix("").is_dir() for path in between)


def _is_whole(run: Path) -> bool:
    """Whether a finished run still has its results; says which one it has not."""
    try:
        check_results(run)
    except IdcError as error:
        warn(f"{error}; it is done again")
        return False
    return True


def recipes_of(run: Path) -> list[Path]:
    """The recipe files of a run: one, or one per step count."""
    single = run / "recipe.json"
    return [single] if single.is_file() else sorted(run.glob("steps_*/recipe.json"), key=lambda p: _place(run, p))


def _place(run: Path, recipe: Path) -> int:
    order = (read_info(run) or {}).get("recipes", [])
    name = recipe.parent.name
    return order.index(name) if name in order else len(order)


def latest_recipes(stage: str, task: str, model: str) -> list[Path]:
    """Recipes of the newest finished run made by an earlier stage of the chain; empty if there is none."""
    if stage in FROM_THE_FULL_MODEL:
        return []
    place = CHAIN.get(stage, AFTER_THE_CHAIN)
    runs: list[tuple[float, Path]] = []
    for earlier, earlier_place in CHAIN.items():
        folder = OUTPUTS / task / model / earlier
        if earlier_place >= place or not folder.is_dir():
            continue
        for path in folder.iterdir():
            info = read_info(path)
            if info is not None and info["finished"] and recipes_of(path):
                runs.append((float(info.get("finished_seconds", 0.0)), path))
    return recipes_of(max(runs)[1]) if runs else []


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def environment() -> dict[str, Any]:
    """Versions and hardware of this run, for environment.json."""
    import platform
    from importlib import metadata

    packages = ("idcompress", "torch", "diffusers", "transformers", "lightning", "hydra-core", "numpy")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name() or platform.processor(),
        "cpu_count": os.cpu_count(),
        "packages": versions,
    }
