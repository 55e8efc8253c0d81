"""The README.md of an exported folder: what the model is, what it scored, how to run it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runs import files
from ..runs.evaluation import COSTS
from ..runs.recipe import Recipe

if TYPE_CHECKING:
    from ..tasks._task import Task

# Rows of metrics.json that depend on the machine or are no scores; sizes have a line of their own.
_NOT_SCORES = {*COSTS} - {"gmacs"}
_FOLLOWING = """\
The scheduler takes the steps of DDIM over that list: DPM-Solver++ of order 1 is DDIM and, unlike diffusers'
DDIMScheduler, accepts a list. diffusers warns that it ignores `timesteps` in the scheduler's configuration; the code
above brings them in. Of the stock schedulers DDPM, Euler, Heun, LCM, TCD and both DPM-Solvers take `timesteps=`; DDIM,
PNDM, DEIS and UniPC do not. Never assign to `scheduler.timesteps`, because the steps would no longer fit the list.
`idcompress.load_pipeline` on this folder follows the list by itself."""
_CARRIED = """\
The steps are those of a list that stands in the scheduler's configuration, each with numbers that were fitted for this
model, list and guidance; they hold for no other. No scheduler of diffusers' own knows such numbers, so this folder
brings one, `scheduler/fixed_timesteps.py`, whose code runs only with `trust_remote_code=True`: read it first.
`idcompress.load_pipeline` on this folder takes idcompress's own."""
_PIPELINE = """\
diffusers' own class of this task takes U-Nets of four latent channels alone, and this one has others, so this folder
brings its pipeline, `pipeline.py`, whose code runs only with `trust_remote_code=True`: read it first.
`idcompress.load_pipeline` on this folder takes idcompress's own."""
_PLAN = """\
The steps are those of a plan that differ in what they compute: some leave out deep levels, guidance passes or side
networks, and take what an earlier step had there. No class of diffusers' own can do that, so this folder brings its
pipeline and its scheduler, `pipeline.py` and `scheduler/fixed_timesteps.py`, whose code runs only with
`trust_remote_code=True`: read it first. `pipe.computed` has what each step computes; `pipe.disable()` computes
everything, over as many steps as a call asks for, until `pipe.enable()`. `idcompress.load_pipeline` on this folder
takes idcompress's own classes."""
_DEEPCACHE = "DeepCache's `DeepCacheSDHelper` (0.1.1) works on it."
_DEEPCACHE_STOCK = """\
DeepCache's `DeepCacheSDHelper` (0.1.1) works on it, once a cut U-Net has a middle block for it to wrap, one that does
nothing: `pipe.unet.mid_block = torch.nn.Module(); pipe.unet.mid_block.forward = lambda sample, *_: sample` before
`enable()`."""


@dataclass(frozen=True)
class Card:
    """What the page says.

    Attributes:
        recipe: that was exported, not the folder's own.
        task: of the recipe.
        library: what loads it: diffusers, idcompress or onnxruntime.
        parameters: network -> (parameters of the base model's, parameters in the folder).
        licence: of the base model; None where it is not known.
        metrics: rows of the evaluation's metrics.json; empty where this recipe was not evaluated.
        digests: file -> SHA-256.
        pipeline_class: to load it by.
        takes_timesteps: whether a call of that class has the argument `timesteps`.
        carries_scheduler, carries_pipeline: whether the folder brings the code of its scheduler, of its pipeline.
        carries_plan: whether it brings the code of both, because its plan's steps differ in what they compute.
        host: the depth whose stock form holds a smaller one; None where nothing is padded.
        dtype: of the weights, as torch spells it without the prefix.
        example: of ONNX, Python that makes output.png from input.png.
        errors: of ONNX, graph -> largest difference from torch, as a share of the largest value.
        folded: what was folded -> parameters saved.
    """

    recipe: Recipe
    task: Task
    library: str
    parameters: dict[str, tuple[int, int]]
    licence: str | None
    metrics: dict[str, Any]
    digests: dict[str, str]
    pipeline_class: str = ""
    takes_timesteps: bool = False
    carries_scheduler: bool = False
    carries_pipeline: bool = False
    carries_plan: bool = False
    host: int | None = None
    dtype: str = "float32"
    example: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    folded: dict[str, int] = field(default_factory=dict)

    def text(self) -> str:
        """The page, with the header that the hub reads."""
        return "\n".join([*self._header(), *self._facts(), *self._scores(), *self._use(), *self._origin()]) + "\n"

    @property
    def base(self) -> str:
        """The base model's repository, its folder's name, or the embedded model."""
        model = self.recipe.model
        if model.get("path"):
            return Path(model["path"]).resolve().name
        return str(
            (model.get("repositories") or {}).get("pipeline") or f"idcompress's embedded {self.recipe.task} model"
        )

    @property
    def depth(self) -> str:
        if self.recipe.depth is None:
            return "full" if self.recipe.cut is None else self.recipe.kept
        return f"{self.recipe.depth}" + (f", inside the stock form of depth {self.host}" if self.host else "")

    def _header(self) -> list[str]:
        repository = not self.recipe.model.get("path") and (self.recipe.model.get("repositories") or {}).get("pipeline")
        return [
            "---",
            f"library_name: {self.library}",
            *([f"license: {self.licence}"] if self.licence else []),
            *([f"base_model: {repository}"] if repository else []),
            "pipeline_tag: image-to-image",
            "tags: [idcompress]",
            "---",
            "",
            f"# {self.base}, compressed",
            "",
        ]

    def _facts(self) -> list[str]:
        timesteps = "not fixed" if self.recipe.timesteps is None else ", ".join(map(str, self.recipe.timesteps))
        rows = [
            ("task", self.recipe.task),
            ("depth", self.depth),
            ("timesteps", timesteps),
            *((name, str(scale)) for name, scale in self.recipe.guidance.items()),
            *(
                (f"parameters of {name}", f"{ours:,} of {base:,} ({ours / base:.1%})")
                for name, (base, ours) in self.parameters.items()
            ),
            *((f"folded: {what}", f"{saved:,} parameters less") for what, saved in self.folded.items()),
            ("weights", self.dtype),
            ("base model", self.base),
            ("licence", self.licence or "unknown, see the base model"),
        ]
        return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]

    def _scores(self) -> list[str]:
        rows = {name: row for name, row in self.metrics.items() if name not in _NOT_SCORES}
        if not rows:
            return ["No evaluation of this recipe was found when it was exported.", ""]
        table = [
            f"| {n} | {_number(r['original'])} | {_number(r['compressed'])} | {r['unit']} |" for n, r in rows.items()
        ]
        return ["| | original | this model | unit |", "|---|---|---|---|", *table, ""]

    def _use(self) -> list[str]:
        lines = ["## Use", "", *self._needs(), "", "```python", *self.code(), "```", ""]
        if self.library == "onnxruntime":
            return [*lines, *self._graphs()]
        stock = self.library == "diffusers"
        if self.carries_pipeline:
            lines += [_PIPELINE, ""]
        if self.carries_plan:
            lines += [_PLAN, ""]
        elif stock and self.recipe.timesteps:
            lines += [_CARRIED if self.carries_scheduler else _FOLLOWING, ""]
        if stock and self.recipe.depth and self.task.cut_note:
            lines += [self.task.cut_note, ""]
        if self.recipe.plan is not None and not self.recipe.plan.is_plain:
            return lines  # whose plan has such caches of its own
        return [*lines, _DEEPCACHE_STOCK if stock else _DEEPCACHE, ""]

    def _graphs(self) -> list[str]:
        """The graphs' files with what identifies them."""
        return [
            "Batch and size are free; `timestep` is one number for the batch.",
            "",
            "| graph | largest difference from torch, as a share of the largest value |",
            "|---|---|",
            *(f"| {name} | {error:.1e} |" for name, error in self.errors.items()),
            "",
            "| file | SHA-256 |",
            "|---|---|",
            *(f"| {name} | {digest} |" for name, digest in self.digests.items()),
            "",
        ]

    def _needs(self) -> list[str]:
        if self.library == "onnxruntime":
            return ["DDIM in NumPy; needs onnxruntime, Pillow and, for prompts, transformers. Run it in this folder:"]
        if self.library == "diffusers":
            return ["Plain diffusers; run it in this folder or put the folder's path or repository for `.`:"]
        return ["Needs `idcompress` (`pip install idcompress`); put the folder's path for `.`:"]

    def code(self) -> list[str]:
        """Python that makes output.png from input.png, executable as it stands."""
        if self.example:
            return self.example
        stock = self.library == "diffusers"
        prompts = self.task.numpy_example.prompts
        call = f"{prompts[0]!r}, image=" if prompts else ""
        arguments = {**self.task.further_arguments, **self.recipe.guidance}
        scales = "".join(f", {name}={value}" for name, value in arguments.items())
        if self.task.own_sampler == "ancestral" and self.recipe.sampler not in (None, "ancestral"):
            scales += ", eta=0"
        steps = f", num_inference_steps={len(self.recipe.timesteps)}" if self.recipe.timesteps else ""
        follow: list[str] = []
        if self.carries_scheduler:
            pass  # its list wins over the number of steps
        elif stock and self.recipe.timesteps and self.takes_timesteps:
            steps = ", timesteps=pipe.scheduler.config['timesteps']"
        elif stock and self.recipe.timesteps:
            follow = [
                "set_timesteps, listed = pipe.scheduler.set_timesteps, pipe.scheduler.config['timesteps']",
                "pipe.scheduler.set_timesteps = lambda *_, device=None: set_timesteps(timesteps=listed, device=device)",
            ]
        picture = "Image.open('input.png').convert('RGB')"
        image = f"image = pipe({call}{picture}{steps}{scales}).images[0]"
        save = "image.save('output.png')"
        if not stock:
            load = f"pipe = idcompress.load_pipeline('.', dtype='{self.dtype}')"
            return ["import idcompress", "from PIL import Image", load, image, save]
        trust = ", trust_remote_code=True" if self.carries_scheduler or self.carries_pipeline else ""
        brings = self.carries_pipeline or self.carries_plan
        entry = "DiffusionPipeline" if brings else self.pipeline_class
        load = f"pipe = diffusers.{entry}.from_pretrained('.', dtype=torch.{self.dtype}{trust})"
        return ["import diffusers, torch", "from PIL import Image", load, *follow, image, save]

    def _origin(self) -> list[str]:
        lines = ["## How it was made", "", "By [idcompress](https://arxiv.org/abs/2401.17547), depth-skip pruning and"]
        lines += ["timestep optimisation (Kim et al., ACCV 2024); `recipe.json` beside this file has the details.", ""]
        lines += [
            f"- {row['stage']}: seed {row.get('seed')}, {len(row.get('photographs', {}))} photographs, "
            f"code {row.get('code')}"
            for row in self.recipe.provenance
        ]
        if self.recipe.weights:
            lines.append(f"- fine-tuned: {', '.join(self.recipe.weights)}")
        return lines


def licence_of(folder: Path) -> str | None:
    """What a model folder's README.md declares to the hub (`license: ...`); None where it declares nothing."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    header = text.split("\n---", 1)[0] if text.startswith("---\n") else ""
    found = re.search(r"^license:\s*([\w.-]+)", header, re.MULTILINE)
    return found[1] if found else None


def evaluation_of(digest: str, places: list[Path]) -> dict[str, Any]:
    """Rows of the newest metrics.json below some folders that evaluated the recipe with this digest; {} for none."""
    paths = {path for place in places for path in place.rglob("metrics.json")}
    for path in sorted(paths, key=lambda p: p.stat().st_mtime, reverse=True):
        value = files.read_json(path, "evaluation")
        recipe = value.get("recipe")
        rows = value.get("metrics")
        if isinstance(recipe, dict) and recipe.get("digest") == digest and isinstance(rows, dict):
            return rows
    return {}


def _number(value: Any) -> str:
    if value is None:
        return "exact"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
