"""Find an evaluation and the runs that led to it, and read what they left behind."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import IdcError, shown
from ..runs import files
from ..runs.recipe import Recipe
from ..runs.run_dir import OUTPUTS, check_results, read_info, was_set_aside
from ..runs.trace import Trace

_WARNING = " WARNING warning: "


@dataclass(frozen=True)
class Evaluation:
    """One recipe's evaluation.

    Attributes:
        folder: holds metrics.json, per_image.csv and images/.
        metrics: metrics.json.
        recipe: evaluated_recipe.json.
        rows: per_image.csv, a dictionary per image.
    """

    folder: Path
    metrics: dict[str, Any]
    recipe: Recipe
    rows: list[dict[str, str]]

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        """Metric name -> its row of metrics.json."""
        values: dict[str, dict[str, Any]] = self.metrics["metrics"]
        return values

    @property
    def alternatives(self) -> list[dict[str, Any]]:
        """Plain ways to spend as much, as far as they were run."""
        rows: list[dict[str, Any]] = self.metrics.get("alternatives", [])
        return rows

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    @property
    def original_steps(self) -> int:
        return int(self.values["num_inference_steps"]["original"])

    @property
    def timesteps(self) -> list[int]:
        """The list that the compressed model was sampled over."""
        return [int(t) for t in self.metrics["recipe"]["timesteps"]]

    def image(self, kind: str, name: str) -> Path | None:
        """The PNG of one example in images/<kind>/, None if there is none."""
        path = files.fitted(self.folder / "images" / kind / f"{name}.png")
        return path if path.is_file() else None


@dataclass(frozen=True)
class Stage:
    """A stage that made the recipe.

    Attributes:
        entry: its entry in the recipe's provenance.
        folder: its run folder; None where no run with its digest is left.
        metrics: its metrics.json; empty where it searched nothing.
        trace: its rows, one per evaluated candidate.
        seconds: of its parts, which sum to its wall time.
    """

    entry: dict[str, Any]
    folder: Path | None
    metrics: dict[str, Any] = field(default_factory=dict)
    trace: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.entry["stage"])


@dataclass(frozen=True)
class Compression:
    """All that the page tells.

    Attributes:
        folder: run folder of the evaluation.
        evaluations: one per step count, most steps first.
        stages: the stages that made the recipes, in order.
        config: resolved configuration of the run.
        environment: environment.json of the run.
        run_info: run.json of the evaluation.
        warnings: what the evaluation warned of.
        examples: names of the images to show.
        seconds: of the evaluation's parts, which sum to its wall time.
    """

    folder: Path
    evaluations: list[Evaluation]
    stages: list[Stage]
    config: dict[str, Any]
    environment: dict[str, Any]
    run_info: dict[str, Any]
    warnings: list[str]
    examples: list[str]
    seconds: dict[str, float]

    @property
    def task(self) -> str:
        return str(self.evaluations[0].metrics["task"])

    @property
    def model(self) -> str:
        return str(self.evaluations[0].metrics["model"])

    def stage(self, name: str) -> Stage | None:
        """The last stage of this name."""
        return next((stage for stage in reversed(self.stages) if stage.name == name), None)

    @property
    def strategy(self) -> str:
        """Name of the strategy that made the recipes' timesteps."""
        search = self.stage("tsopt")
        if self.stages and self.stages[-1].name == "plan":
            return "plan"
        return str(search.entry.get("strategy", "recipe")) if search else "recipe"

    def is_uniform(self, evaluation: Evaluation) -> bool:
        """Whether a recipe samples over uniform timesteps, so that compressed and uniform are one system."""
        own = evaluation.recipe.timesteps
        return own is None or list(own) == self.uniform_timesteps(evaluation.steps)

    def uniform_timesteps(self, steps: int) -> list[int] | None:
        """The uniform list of a step count, as the timestep search recorded it; None where none did."""
        search = self.stage("tsopt")
        for row in search.metrics.get("searches", []) if search else []:
            if row["num_inference_steps"] == steps and "uniform_timesteps" in row:
                return [int(t) for t in row["uniform_timesteps"]]
        return None


@contextmanager
def as_written(folder: Path) -> Iterator[None]:
    """What is read and laid out inside comes from files that a run wrote; others of their names end in one line.

    Raises:
        IdcError: something in the files is missing, or is of another type or form.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError, StopIteration) as error:
        reason = " ".join(str(error).split())[:200]
        raise IdcError(
            f"a file of the run {folder} is not as a run writes it ({type(error).__name__}: {reason}); repeat the run, "
            "or set HYDRA_FULL_ERROR=1 to see where"
        ) from error


def find_evaluation(path: str | None, task: str, model: str) -> Path:
    """The run folder of the evaluation to report on.

    Args:
        path: an evaluate run folder, or a compress run folder; None: the newest finished evaluation of `task` and
            `model` (the model's part of a run folder's path) under ./outputs, by itself or in a compress run.

    Raises:
        IdcError: there is none.
    """
    if path is not None:
        for folder in (Path(path), Path(path) / "evaluate"):
            if _metrics_files(folder):
                return folder
        raise IdcError(f"report.path={path} holds no evaluation; want a run folder of `idc evaluate` or `idc compress`")
    root = OUTPUTS / task / model
    found = []
    for file in [*root.glob("evaluate/*/run.json"), *root.glob("compress/*/evaluate/run.json")]:
        info = read_info(file.parent)
        if info is not None and info["finished"] and _metrics_files(file.parent):
            found.append((float(info.get("finished_seconds", 0.0)), file.parent))
    if not found:
        raise IdcError(
            f"no finished evaluation under {root} to report on; run `idc compress task={task}` or "
            f"`idc evaluate task={task}` first, or give report.path=FOLDER"
        )
    return max(found)[1]


def collect(folder: Path, num_images: int) -> Compression:
    """Read an evaluation's run folder and, by the digests in its recipe, the runs that made the recipe.

    Args:
        num_images: examples to show where the evaluation has not chosen any.
    """
    check_results(folder)
    evaluations = [_evaluation(path.parent) for path in _metrics_files(folder)]
    evaluations.sort(key=lambda evaluation: -evaluation.steps)
    entries: dict[str, dict[str, Any]] = {}
    for evaluation in evaluations:
        for entry in evaluation.recipe.provenance:
            entries.setdefault(str(entry.get("config_digest", "")), entry)
    runs = _runs_by_digest(folder)
    stages = [_stage(entry, runs.get(digest)) for digest, entry in entries.items()]
    # A compress run keeps these once, above its stages.
    top = folder if (folder / "config.yaml").is_file() else folder.parent
    return Compression(
        folder=folder,
        evaluations=evaluations,
        stages=stages,
        config=_read_yaml(top / "config.yaml"),
        environment=_read_optional(top / "environment.json"),
        run_info=_read_optional(folder / "run.json"),
        warnings=_warnings(top / "log.txt"),
        examples=_examples(evaluations[0], num_images),
        seconds=_seconds(folder),
    )


def evaluations_in(folder: Path) -> list[tuple[str, Evaluation]]:
    """Every evaluation anywhere in a folder with its path in there, in the order of the paths; not what was set aside.

    Raises:
        IdcError: no such folder, or a file of an evaluation is not as one should be.
    """
    if not folder.is_dir():
        raise IdcError(f"runs={folder}: no such folder")
    found = {path.parent for path in folder.rglob("metrics.json") if (path.parent / "evaluated_recipe.json").is_file()}
    found = {path for path in found if not was_set_aside(path, folder)}
    for path in {run for place in found for run in (place, place.parent) if read_info(run)}:
        check_results(path)
    return [(str(path.relative_to(folder)), _evaluation(path)) for path in sorted(found)]


def _metrics_files(folder: Path) -> list[Path]:
    """metrics.json of an evaluation: one, or one per step count."""
    found = [folder / "metrics.json"] if (folder / "metrics.json").is_file() else folder.glob("steps_*/metrics.json")
    return [path for path in found if (path.parent / "evaluated_recipe.json").is_file()]


def _evaluation(folder: Path) -> Evaluation:
    metrics = files.read_json(folder / "metrics.json", "evaluation")
    rows = _per_image(folder / "per_image.csv")
    if len(rows) != metrics.get("num_images", len(rows)):
        raise IdcError(
            f"{folder / 'per_image.csv'} holds {len(rows)} images, and metrics.json beside it is of "
            f"{shown(metrics['num_images'])}; repeat the evaluation"
        )
    return Evaluation(folder, metrics, Recipe.load(folder / "evaluated_recipe.json"), rows)


def _per_image(path: Path) -> list[dict[str, str]]:
    """The rows of a per_image.csv, each of them whole."""
    try:
        text = files.read_file(path, "evaluation").decode("utf-8")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except FileNotFoundError:
        raise IdcError(f"evaluation: there is no file {path}") from None
    except (OSError, ValueError, csv.Error) as error:
        raise IdcError(f"evaluation: {path} is not readable CSV ({error})") from None
    if not text.endswith("\n") or any(None in row or None in row.values() or "name" not in row for row in rows):
        raise IdcError(f"evaluation: {path} is cut short or damaged; repeat the evaluation")
    return rows


def _runs_by_digest(folder: Path) -> dict[str, Path]:
    """Run folders by the digest of their configuration: beside the evaluation first, then all under ./outputs."""
    found: list[tuple[bool, float, str, Path]] = []
    # task/model/stage/time and its stages, or sweeps/time/number and its stages
    patterns = ["/".join(["*"] * depth) + "/run.json" for depth in (3, 4, 5)]
    for file in {*folder.parent.glob("*/run.json"), *(path for p in patterns for path in OUTPUTS.glob(p))}:
        info = read_info(file.parent)
        if info is not None and info["finished"]:
            beside = file.parent.parent == folder.parent
            found.append((beside, float(info.get("finished_seconds", 0.0)), str(info.get("digest")), file.parent))
    return {digest: path for _, _, digest, path in sorted(found)}


def _stage(entry: dict[str, Any], folder: Path | None) -> Stage:
    if folder is None:
        return Stage(entry, None)
    check_results(folder)
    metrics, trace = _read_optional(folder / "metrics.json"), Trace(folder / "trace.jsonl").rows
    return Stage(entry, folder, metrics, trace, _seconds(folder))


def _seconds(folder: Path) -> dict[str, float]:
    seconds: dict[str, float] = _read_optional(folder / "timing.json").get("seconds", {})
    return seconds


def _read_optional(path: Path) -> dict[str, Any]:
    return files.read_json(path, "run folder") if path.is_file() else {}


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise IdcError(f"{path} is not readable YAML ({' '.join(str(error).split())})") from None
    return value if isinstance(value, dict) else {}


def _warnings(path: Path) -> list[str]:
    """What a run's log warns of, each text once."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return list(dict.fromkeys(line.partition(_WARNING)[2] for line in lines if _WARNING in line))


def _examples(evaluation: Evaluation, num_images: int) -> list[str]:
    """The examples that the evaluation also sampled depth-skipped at the original's steps, else the first ones."""
    names = [row["name"] for row in evaluation.rows]
    return [name for name in names if evaluation.image("depth_skipped", name)] or names[:num_images]
