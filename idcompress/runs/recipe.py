"""Recipe: what a compression has decided so far, an immutable value that one stage hands to the next as recipe.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.cut import Cut
from ..core.plan import Plan
from ..errors import IdcError, did_you_mean, shown
from . import files, recipe_checks

VERSION = 2


@dataclass(frozen=True, init=False)
class Recipe:
    """A compressed model as a few values, and where they come from. Documented in docs/recipe.md.

    It can be made from the fields below, or with the words of the first version of the format, which stand for a cut
    and a plan: `depth`, `timesteps` or `num_inference_steps`, and `guidance`.

    Attributes:
        task: registered name of the task.
        model: what was compressed: {"name", "path" (a folder, or null), "repositories" (on the hub, or null),
            "revision", "digest" (SHA-256 over its weights and configurations)}.
        cut: what is kept of the model; None for all of it.
        weights: fine-tuned weights that replace the model's, {component: {"file", "sha256"}}; files lie beside the
            recipe. Empty: the model's own weights, pruned.
        plan: how a picture is sampled; None where no stage has looked at the model yet.
        free_steps: True if nobody chose the plan's timesteps: it stands for that many uniform steps, and any other
            number of uniform steps may be taken instead. False if a search chose them.
        parent: digest of the recipe that this one was made from, None for the full model.
        provenance: the stages so far, in order: each {"stage", "config_digest", "seed", "code", "photographs", ...}.
        version: of this format.
        folder: where it was loaded from; not part of its value.
    """

    task: str
    model: dict[str, Any]
    cut: Cut | None = None
    weights: dict[str, dict[str, str]] = field(default_factory=dict)
    plan: Plan | None = None
    free_steps: bool = True
    parent: str | None = None
    provenance: tuple[dict[str, Any], ...] = ()
    version: int = VERSION
    folder: Path | None = field(default=None, compare=False, repr=False)

    def __init__(
        self,
        task: str,
        model: dict[str, Any],
        cut: Cut | None = None,
        weights: dict[str, dict[str, str]] | None = None,
        plan: Plan | None = None,
        free_steps: bool = True,
        parent: str | None = None,
        provenance: tuple[dict[str, Any], ...] = (),
        version: int = VERSION,
        folder: Path | None = None,
        *,
        depth: int | None = None,
        timesteps: Sequence[float] | None = None,
        num_inference_steps: int | None = None,
        guidance: Mapping[str, float] | None = None,
    ) -> None:
        if depth is not None:
            cut = Cut("depth_skip", {"depth": depth})
        if timesteps is not None:
            plan, free_steps = Plan.over(timesteps), False
        elif num_inference_steps is not None:
            plan, free_steps = Plan.over(_uniform(num_inference_steps)), True
        if guidance is not None and plan is not None:
            plan = dataclasses.replace(plan, guidance=guidance)
        values = (task, model, cut, weights or {}, plan, free_steps, parent, tuple(provenance), version, folder)
        for name, value in zip(self.__dataclass_fields__, values, strict=True):
            object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "task": self.task,
            "model": self.model,
            "cut": None if self.cut is None else self.cut.to_json(),
            "weights": self.weights,
            "plan": None if self.plan is None else self.plan.to_json(),
            "free_steps": self.free_steps,
            "parent": self.parent,
            "provenance": list(self.provenance),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe's JSON."""
        return files.digest(self.to_json())

    @property
    def is_full(self) -> bool:
        """Whether it is the uncompressed model."""
        return self.cut is None and self.timesteps is None and not self.weights

    @property
    def depth(self) -> int | None:
        """Levels of the U-Net that are kept, where the cut is one by depth; None for all of them."""
        return None if self.cut is None else self.cut.choice.get("depth")

    @property
    def kept(self) -> str:
        """What is kept of the model, in words: "depth 9", "bk_sdm base", "full depth"."""
        if self.cut is None:
            return "full depth"
        if self.depth is not None:
            return f"depth {self.depth}"
        plain = [str(value) for value in self.cut.choice.values() if isinstance(value, (str, int, float))]
        return " ".join([self.cut.method, *plain])

    @property
    def timesteps(self) -> tuple[float, ...] | None:
        """The timesteps that were chosen, never increasing; None where any number of uniform ones may be taken."""
        return None if self.plan is None or self.free_steps else self.plan.timesteps

    @property
    def num_inference_steps(self) -> int | None:
        """Steps of the plan; None where there is none yet."""
        return None if self.plan is None else len(self.plan)

    @property
    def guidance(self) -> dict[str, float]:
        """The plan's guidance scales by their diffusers names."""
        return {} if self.plan is None else dict(self.plan.guidance)

    @property
    def sampler(self) -> str | None:
        """The plan's sampler; None where there is no plan yet."""
        return None if self.plan is None else self.plan.sampler

    @property
    def stage(self) -> str:
        """The stage that made it; "" for the full model."""
        return str(self.provenance[-1]["stage"]) if self.provenance else ""

    def derive(self, provenance: dict[str, Any], **changes: Any) -> Recipe:
        """A new recipe made from this one by a stage; weights that it keeps are still found in this one's folder."""
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

    def fit_key(self, plan: Plan, process: Mapping[str, Any]) -> dict[str, Any]:
        """All that a plan's fitted numbers hold for, each by a digest but the guidance.

        Args:
            plan: with the recipe's weights.
            process: the model's, as its `to_json` gives it.
        """
        return {
            "model": self.model.get("digest"),
            "cut": None if self.cut is None else files.digest(self.cut.to_json()),
            "weights": files.digest({name: entry["sha256"] for name, entry in self.weights.items()}),
            "timesteps": files.digest([[step.to_json() for step in plan.steps], plan.fill]),
            "guidance": dict(plan.guidance),
            "process": files.digest(process),
        }

    def check_fit(self, plan: Plan, process: Mapping[str, Any]) -> None:
        """Refuse a plan whose sampler moves by numbers that were not fitted for it.

        Args:
            plan, process: as in `fit_key`.

        Raises:
            IdcError: there are no numbers, or they were fitted for something else; the message has the command that
                fits them.
        """
        fits = [entry["fit"] for entry in self.provenance if "fit" in entry]
        known, wanted = (fits[-1]["key"] if fits else {}), self.fit_key(plan, process)
        other = [name for name, value in wanted.items() if known.get(name) != value]
        if plan.coefficients is not None and not other:
            return
        if plan.coefficients is None or not fits:
            what = f"sampler={plan.sampler} moves by numbers fitted to a model and its list, and this recipe has none"
        else:
            scales = ", ".join(f"{name} {scale:g}" for name, scale in known["guidance"].items())
            other = [f"guidance ({scales})" if name == "guidance" else name for name in other]
            what = f"this recipe's numbers for sampler={plan.sampler} were fitted for another {' and '.join(other)}"
        raise IdcError(f"{what}; fit them by: {self._fit_command(plan)}")

    def _fit_command(self, plan: Plan) -> str:
        """The command line that makes this recipe with numbers for a plan."""
        words = ["idc tsopt", f"task={self.task}", f"sampler={plan.sampler}"]
        if self.stage == "export":
            words.append(f"model.path={self.model['path']}")
        elif self.folder is not None:
            words.append(f"recipe={self.folder / 'recipe.json'}")
        if self.depth is not None:
            words.append(f"depth={self.depth}")
        searches = [str(entry["strategy"]) for entry in self.provenance if "strategy" in entry]
        words += [f"timesteps={name}" for name in searches[-1:]]
        words += [
            f"tsopt.num_inference_steps={len(plan)}",
            *(f"{name}={scale:g}" for name, scale in plan.guidance.items()),
        ]
        return " ".join(words)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read and check a recipe of this version of the format, or of the one before.

        What its timesteps and depths mean only a loaded model can tell, which checks them.

        Raises:
            IdcError: the file is missing or damaged, a field is missing, unknown or of the wrong type, or a newer
                version wrote it.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "recipe.json"
        value = files.read_json(path, "recipe")
        version = value.get("version")
        if version not in (1, VERSION) or isinstance(version, bool):
            raise IdcError(f"recipe {path} has version {shown(version)}, this program reads {VERSION}, and 1")
        checks = recipe_checks.checks(version)
        for name in value:
            if name not in checks:
                raise IdcError(f"recipe {path} has an unknown field {name!r}{did_you_mean(name, checks)}")
        for name in checks:
            if name not in value:
                raise IdcError(f"recipe {path} lacks the field {name!r}")
        for name, (what, holds) in checks.items():
            if not holds(value[name]):
                raise IdcError(f"recipe {path}: {name} must be {what}, got {shown(value[name])}")
        if version == 1:
            try:
                value = _from_version_1(value)
            except (ValueError, IdcError) as error:
                raise IdcError(f"recipe {path}: {error}") from None
        made: dict[str, Any] = {}
        for name, kind in (("cut", Cut), ("plan", Plan)):
            try:
                made[name] = None if value[name] is None else kind.from_json(value[name])
            except ValueError as error:
                raise IdcError(f"recipe {path}: {name}: {error}") from None
        return cls(**value | made | {"provenance": tuple(value["provenance"])}, folder=path.parent)

    @classmethod
    def of_folder(cls, folder: str | Path) -> Recipe | None:
        """The recipe that `idc export` left in a pipeline folder; None where there is none."""
        path = Path(folder) / "recipe.json"
        recipe = cls.load(path) if path.is_file() else None
        return recipe if recipe is not None and recipe.stage == "export" else None


def _from_version_1(value: dict[str, Any]) -> dict[str, Any]:
    """The fields of this version from those of the first, which had a depth and a list in their place.

    It knew 1,000 training timesteps only, so that uniform steps can be spelled out.

    Raises:
        ValueError, IdcError: more steps than that, or a number that a plan cannot have.
    """
    cut = None if value["depth"] is None else {"method": value["prune"], "depth": value["depth"]}
    provenance = value["provenance"]
    sampler = provenance[-1].get("sampler") if provenance else None
    timesteps = value["timesteps"]
    if timesteps is None:
        timesteps = _uniform(value["num_inference_steps"])
    plan = Plan.over(timesteps, sampler=sampler or "ddim", guidance=value["guidance"])
    kept = {name: value[name] for name in ("task", "model", "weights", "parent", "provenance")}
    return kept | {"version": VERSION, "cut": cut, "plan": plan.to_json(), "free_steps": value["timesteps"] is None}


def _uniform(num_inference_steps: int) -> list[float]:
    """So many even steps over 1,000 training timesteps, which the first version of the format took for granted.

    They stand for their number: what is sampled are the uniform steps of the model's own process.
    """
    if not 1 <= num_inference_steps <= 1000:
        raise IdcError(f"num_inference_steps must be between 1 and 1000, got {num_inference_steps}")
    return [999 * i // max(num_inference_steps - 1, 1) for i in range(num_inference_steps - 1, -1, -1)]
