"""Recipe: what a compression has decided so far, an immutable value that one stage hands to the next as recipe.json."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import IdcError, did_you_mean
from . import files

VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """A compressed model as a few numbers, and where they come from. Documented in docs/recipe.md.

    Attributes:
        task: registered name of the task.
        model: what was compressed: {"name", "path" (a folder, or null), "repositories" (on the hub, or null),
            "revision", "digest" (SHA-256 over its weights and configurations)}.
        prune: registered name of the prune method that `depth` belongs to.
        depth: levels of the U-Net that are kept, 1-based; None for all of them.
        timesteps: the list to sample over, never increasing; None for uniform steps.
        num_inference_steps: number of steps; the list's length where there is one.
        guidance: guidance scales by their diffusers names; what the recipe was searched for.
        weights: fine-tuned weights that replace the model's, {component: {"file", "sha256"}}; files lie beside the
            recipe. Empty: the model's own weights, pruned.
        parent: digest of the recipe that this one was made from, None for the full model.
        provenance: the stages so far, in order: each {"stage", "config_digest", "seed", "code", "photographs", ...}.
        version: of this format.
        folder: where it was loaded from; not part of its value.
    """

    task: str
    model: dict[str, Any]
    prune: str = "depth_skip"
    depth: int | None = None
    timesteps: tuple[int, ...] | None = None
    num_inference_steps: int = 50
    guidance: dict[str, float] = field(default_factory=dict)
    weights: dict[str, dict[str, str]] = field(default_factory=dict)
    parent: str | None = None
    provenance: tuple[dict[str, Any], ...] = ()
    version: int = VERSION
    folder: Path | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        names = [f.name for f in dataclasses.fields(self) if f.name != "folder"]
        return {name: _plain(getattr(self, name)) for name in ["version", *(n for n in names if n != "version")]}

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe's JSON."""
        return files.digest(self.to_json())

    @property
    def is_full(self) -> bool:
        """Whether it is the uncompressed model."""
        return self.depth is None and self.timesteps is None and not self.weights

    @property
    def stage(self) -> str:
        """The stage that made it; "" for the full model."""
        return str(self.provenance[-1]["stage"]) if self.provenance else ""

    @property
    def sampler(self) -> str | None:
        """The sampler of the stage that made it; None where none did, or an old one that does not say."""
        return self.provenance[-1].get("sampler") if self.provenance else None

    def derive(self, provenance: dict[str, Any], **changes: Any) -> Recipe:
        """A new recipe made from this one by a stage; weights that it keeps are still found in this one's folder."""
        if changes.get("timesteps") is not None:
            changes["timesteps"] = tuple(changes["timesteps"])
            changes.setdefault("num_inference_steps", len(changes["timesteps"]))
        folder = self.folder if self.weights and "weights" not in changes else None
        return dataclasses.replace(
            self, parent=self.digest, provenance=(*self.provenance, provenance), folder=folder, **changes
        )

    def derive_model(self, model: dict[str, Any]) -> Recipe:
        """This recipe with its model's digest filled in, once the model has been loaded."""
        return dataclasses.replace(self, model=model)

    def searched_photographs(self) -> set[str]:
        """Digests of every photograph that a search or training before this recipe has seen."""
        return {d for entry in self.provenance for d in entry.get("photographs", {}).values()}

    def save(self, path: str | Path) -> Path:
        """Write recipe.json, whole or not at all, with the weights beside it."""
        path = Path(path)
        for entry in self.weights.values():
            source, target = (self.folder or path.parent) / entry["file"], path.parent / entry["file"]
            if source.is_file() and source.resolve() != target.resolve():
                files.link(source, target)
        return files.write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read and check a recipe.

        Raises:
            IdcError: the file is missing or damaged, a field is missing, unknown or of the wrong type, or a newer
                version wrote it.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "recipe.json"
        value = files.read_json(path, "recipe")
        if value.get("version") != VERSION:
            raise IdcError(f"recipe {path} has version {value.get('version')!r}, this program reads {VERSION}")
        known = {f.name: f for f in dataclasses.fields(cls) if f.name != "folder"}
        for name in value:
            if name not in known:
                raise IdcError(f"recipe {path} has an unknown field {name!r}{did_you_mean(name, known)}")
        for name in known:
            if name not in value:
                raise IdcError(f"recipe {path} lacks the field {name!r}")
        _check(value, path)
        value["timesteps"] = None if value["timesteps"] is None else tuple(value["timesteps"])
        value["provenance"] = tuple(value["provenance"])
        return cls(**value, folder=path.parent)

    @classmethod
    def of_folder(cls, folder: str | Path) -> Recipe | None:
        """The recipe that `idc export` left in a pipeline folder; None where there is none."""
        path = Path(folder) / "recipe.json"
        recipe = cls.load(path) if path.is_file() else None
        return recipe if recipe is not None and recipe.stage == "export" else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or isinstance(value, float)


def _is_positive(value: Any) -> bool:
    return _is_int(value) and value >= 1


def _holds(value: Any, **fields: Callable[[Any], bool]) -> bool:
    """Whether a value is an object with these fields, each as its check wants it."""
    return isinstance(value, dict) and all(name in value and check(value[name]) for name, check in fields.items())


def _check(value: dict[str, Any], path: Path) -> None:
    def is_name(entry: Any) -> bool:
        return isinstance(entry, str)

    def each(container: Any, check: Callable[[Any], bool]) -> bool:
        return isinstance(container, dict) and all(map(check, container.values()))

    weights, provenance = value["weights"], value["provenance"]
    wanted = {
        "task": ("a name", is_name(value["task"])),
        "model": ("an object with a name", _holds(value["model"], name=is_name)),
        "prune": ("a name", is_name(value["prune"])),
        "depth": ("null or an integer >= 1", value["depth"] is None or _is_positive(value["depth"])),
        "timesteps": ("null or a list of integers that never increases", _is_timesteps(value["timesteps"])),
        "num_inference_steps": ("an integer >= 1", _is_positive(value["num_inference_steps"])),
        "guidance": ("an object of numbers", each(value["guidance"], _is_number)),
        "weights": ("an object of {file, sha256}", each(weights, lambda w: _holds(w, file=is_name, sha256=is_name))),
        "parent": ("null or a digest", value["parent"] is None or is_name(value["parent"])),
        "provenance": (
            "a list of objects, each with its stage",
            isinstance(provenance, list) and all(_holds(entry, stage=is_name) for entry in provenance),
        ),
    }
    for name, (what, holds) in wanted.items():
        if not holds:
            raise IdcError(f"recipe {path}: {name} must be {what}, got {value[name]!r}")


def _is_timesteps(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, list) or not value or not all(_is_int(t) and t >= 0 for t in value):
        return False
    return all(a >= b for a, b in itertools.pairwise(value))
