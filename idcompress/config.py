"""The one configuration tree: its schema, its checks and the folder of its YAML files.

With cli.py the only module that knows Hydra and OmegaConf; stages receive the plain dataclasses below.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Optional, get_type_hints

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.errors import OmegaConfBaseException

from . import limits, registry, words
from .errors import IdcError, did_you_mean, nearest, shown
from .words import Text

# OmegaConf reads these annotations at run time and knows Optional, not X | None, in nested generics.
# ruff: noqa: UP006, UP035, UP045
from typing import Dict, List  # isort: skip

# Values that are taken from the command line letter by letter (words.py).
Prompt = Annotated[Optional[str], Text(prompt=True)]
PromptList = Annotated[Optional[List[str]], Text(several=True)]
Name = Annotated[Optional[str], Text()]
File = Annotated[Optional[str], Text(path=True)]
Files = Annotated[Any, Text(path=True, several=True)]  # one, or a list of them


@dataclass(frozen=True)
class FilesNamed:
    """A mark on a free dictionary: at any depth, values under these names are files."""

    names: tuple[str, ...]


DictOfMetrics = Annotated[Dict[str, Any], FilesNamed(("weights", "head"))]
DictOfDataOptions = Annotated[Dict[str, Any], FilesNamed(("captions_file",))]

# Keys of Hydra's own, which have no place in the schema.
HYDRA_TEXTS = {
    "hydra.run.dir": Text(path=True, hydra=True),
    "hydra.sweep.dir": Text(path=True, hydra=True),
    "hydra.sweep.subdir": Text(hydra=True),
}


@dataclass
class TaskConfig:
    """conf/task/<name>.yaml.

    `models` holds, per model, what cannot be one value for all; `options` are parameters of the task's own; `trained`
    is the default of finetune.parameters.
    """

    name: str
    version: int
    models: Dict[str, Any]
    prompts: PromptList = None
    options: Dict[str, Any] = field(default_factory=dict)
    trained: List[str] = field(default_factory=lambda: ["*"])


@dataclass
class ModelConfig:
    """conf/model/<name>.yaml: where weights come from."""

    name: str
    path: File = None
    revision: Name = None
    repositories: Dict[str, Any] = field(default_factory=dict)
    stages: List[str] = field(default_factory=lambda: ["depth_search", "tsopt", "evaluate", "report"])


@dataclass
class DataConfig:
    """conf/data/<name>.yaml; `options` are parameters of the data set's own."""

    name: str = "photographs"
    path: Files = None
    split: str = "auto"
    search_split: str = "auto"
    options: DictOfDataOptions = field(default_factory=dict)


@dataclass
class DepthSearchConfig:
    num_samples: int = 16
    num_inference_steps: int = 50
    thresholds: Any = None
    fallbacks: Any = None
    min_depth: int = 1
    whole_curve: bool = False


@dataclass
class TsoptConfig:
    num_inference_steps: Any = 10
    num_samples: int = 16
    metric: str = "psnr"
    reference: str = "self"
    reference_steps: int = 50


@dataclass
class FitConfig:
    order: int = 3
    ridge: float = 1e-3
    per_channel: bool = False
    folds: int = 2


@dataclass
class PlanConfig:
    macs: Any = 0.11
    ms: Optional[float] = None
    bytes: Optional[float] = None
    menu: List[str] = field(default_factory=lambda: ["timesteps", "depth", "fill", "sampler", "refresh"])
    patterns: List[str] = field(
        default_factory=lambda: ["full", "every_2nd", "every_3rd", "growing", "first", "front", "one_depth"]
    )
    lists: List[str] = field(default_factory=lambda: ["trailing", "uniform", "gamma", "gits"])
    depths: Optional[List[int]] = None
    samplers: List[str] = field(default_factory=lambda: ["fitted", "ddim"])
    fills: List[str] = field(default_factory=lambda: ["linear", "hold", "zero"])
    passes: List[str] = field(default_factory=lambda: ["all"])
    metric: str = "psnr"
    num_fitted: int = 8
    num_searched: int = 16
    num_validated: int = 16
    num_certified: int = 32
    max_step_images: int = 12000


@dataclass
class EvaluateConfig:
    num_samples: int = 32
    metrics: Any = None
    latency: bool = True
    compile: bool = False
    alternatives: bool = True
    num_alternatives: Optional[int] = 512


@dataclass
class LossConfig:
    """conf/loss/<name>.yaml: weights of the terms."""

    name: str = "task"
    task: float = 1.0
    output: float = 0.0
    features: float = 0.0


@dataclass
class FinetuneConfig:
    components: Optional[List[str]] = None
    parameters: List[str] = field(default_factory=lambda: ["*"])
    batch_size: int = 16
    optimizer: Dict[str, Any] = field(default_factory=dict)
    schedule: str = "constant_with_warmup"
    warmup_steps: int = 20
    ema_decay: Optional[float] = 0.999
    timesteps: str = "all"
    conditioning_dropout: Optional[float] = None
    resolution: Optional[int] = None
    flip: bool = True
    sharpen: Optional[bool] = None
    gradient_checkpointing: bool = False
    compile: bool = False
    num_workers: int = 0
    checkpoint_every_n_steps: int = 50
    checkpoint: File = None
    keep_checkpoint: bool = False
    num_samples: int = 4
    num_inference_steps: int = 20
    metrics: List[str] = field(default_factory=lambda: ["psnr"])
    keep: str = "auto"
    logger: Dict[str, Any] = field(default_factory=dict)


@dataclass
class ProfileConfig:
    latency: bool = True
    batch_size: int = 1
    resolution_px: Optional[int] = None
    compile: bool = False
    repeats: int = 10
    limit_s: float = 30.0


@dataclass
class CompressConfig:
    stages: List[str] = field(default_factory=lambda: ["depth_search", "tsopt", "evaluate", "report"])
    fewer_levels: int = 1
    paper: bool = True
    uncut: bool = True


@dataclass
class ReportConfig:
    num_images: int = 4
    path: File = None


@dataclass
class OutputConfig:
    path: File = None
    overwrite: bool = False


@dataclass
class ConvertConfig:
    main_ckpt: File = None
    cfw_ckpt: File = None
    config: File = None


@dataclass
class TranslateConfig:
    compare: bool = False
    tiles: bool = False


@dataclass
class ExportConfig:
    format: str = "diffusers"
    path: File = None
    host: bool = False
    fold: bool = False
    precision: str = "float32"
    push_to: Name = None


@dataclass
class Config:
    """What every stage receives. The keys are explained in conf/config.yaml."""

    task: TaskConfig
    model: ModelConfig
    prune: Dict[str, Any]
    timesteps: Dict[str, Any]
    loss: LossConfig = field(default_factory=LossConfig)
    study: Dict[str, Any] = field(default_factory=dict)
    compare: Dict[str, Any] = field(default_factory=dict)
    runs: File = None
    metrics: DictOfMetrics = field(default_factory=dict)
    recipe: Annotated[str, Text(path=True)] = "latest"
    depth: Optional[int] = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    threads: int = 0
    batch_size: int = 8
    cache_gb: float = 10.0
    sampler: str = "ddim"
    image: Files = None
    prompt: Prompt = None
    guidance_scale: Optional[float] = 7.5
    image_guidance_scale: Optional[float] = None
    num_inference_steps: int = 50
    resolution_px: Optional[int] = None
    early_stop: Optional[float] = 0.98
    data: DataConfig = field(default_factory=DataConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    depth_search: DepthSearchConfig = field(default_factory=DepthSearchConfig)
    tsopt: TsoptConfig = field(default_factory=TsoptConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    trainer: Dict[str, Any] = field(default_factory=dict)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    translate: TranslateConfig = field(default_factory=TranslateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def guidance(self) -> dict[str, float]:
        """The guidance scales by their diffusers names."""
        scales = {"guidance_scale": self.guidance_scale, "image_guidance_scale": self.image_guidance_scale}
        return {name: scale for name, scale in scales.items() if scale is not None}

    def prompts(self) -> list[str]:
        """Prompts to use in turn; empty for the data set's or the task's own."""
        return words.prompts(self.prompt) if self.prompt is not None else self.task.prompts or []

    def prompt_of(self, index: int) -> str | None:
        """The prompt that `prompt=` has for the picture at this place; None leaves the choice to the task."""
        given = [] if self.prompt is None else words.prompts(self.prompt)
        return given[index % len(given)] if given else None

    def budgets(self) -> list[float]:
        """plan.macs as a list without repetitions, the loosest first; infinite where plan.ms is the bound alone."""
        value = self.plan.macs
        if value is None and self.plan.ms is not None:
            return [math.inf]
        values = value if isinstance(value, list) else [value]
        if not values or not all(type(v) in (int, float) and v > 0 for v in values):
            raise IdcError(
                f"plan.macs must be a number above 0 or a list of them, or null beside plan.ms, got {value!r}"
            )
        return sorted({float(v) for v in values}, reverse=True)

    def step_counts(self) -> list[int]:
        """tsopt.num_inference_steps as a list; the same count twice is refused."""
        value = self.tsopt.num_inference_steps
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            raise IdcError(f"tsopt.num_inference_steps must be an integer or a list of integers, got {value!r}")
        if len(set(values)) < len(values):
            raise IdcError(f"tsopt.num_inference_steps={value}: the same count twice is one count; write it once")
        return list(values)


CHOICES = {
    "device": ("auto", "cpu", "cuda", "mps"),
    "dtype": ("auto", "float32", "float16", "bfloat16"),
    "data.split": ("auto", "train", "search", "evaluate", "all"),
    "data.search_split": ("auto", "train"),
    "tsopt.reference": ("self", "full"),
    "export.format": ("diffusers", "onnx"),
    "export.precision": ("float32", "float16", "int8"),
    "finetune.timesteps": ("all", "inference"),
    "finetune.keep": ("auto", "last", "best"),
    "finetune.schedule": ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"),
}
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
# Stages of a chain, the first of which the second takes something from.
ORDER = (("depth_search", "finetune"), ("evaluate", "report"))
# Keys that hold a list of some of these.
SEVERAL = {
    "plan.menu": ("timesteps", "depth", "fill", "sampler", "refresh", "passes"),
    "plan.patterns": ("full", "every_2nd", "every_3rd", "growing", "first", "front", "one_depth"),
    "plan.lists": ("trailing", "uniform", "gamma", "gits"),
    "plan.fills": ("linear", "hold", "zero"),
    "plan.passes": ("all", "held", "text"),
}
# Keys that change how fast a run is and not its result, so they are not part of its identity.
NOT_IDENTITY = ("batch_size", "threads", "cache_gb", "devices", "num_nodes")


def conf_dir() -> Path:
    """The YAML files: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise RuntimeError(f"the installation is damaged: no conf/config.yaml beside or in {package}")


@functools.cache
def text_of(key: str) -> Text | None:
    """The mark of a key whose value is text, as the annotations above say; None for all other keys."""
    if key in HYDRA_TEXTS:
        return HYDRA_TEXTS[key]
    node: Any = Config
    parts = key.split(".")
    for place, part in enumerate(parts, 1):
        hint = get_type_hints(node, include_extras=True).get(part)
        mark = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, (Text, FilesNamed))), None)
        if isinstance(mark, FilesNamed):
            return Text(path=True) if place < len(parts) and parts[-1] in mark.names else None
        if mark is not None:
            return mark if place == len(parts) else None
        if not dataclasses.is_dataclass(hint):
            return None
        node = hint
    return None


def register() -> None:
    """Make the schema known to Hydra: config.yaml starts from it, so every later YAML and override is checked."""
    ConfigStore.instance().store(name="schema", node=Config)


def to_config(composed: DictConfig) -> Config:
    """Turn what Hydra composed into dataclasses and check what types cannot say.

    Raises:
        IdcError: an unknown key (also one forced in by `+`), a missing or wrong value.
    """
    try:
        gaps = _has_gaps(OmegaConf.to_container(composed, resolve=False))
        container = _with_home(_veiled(OmegaConf.to_container(composed, resolve=True), gaps=gaps))
        # `+key=value` adds keys past Hydra's schema check; merging into the bare schema refuses them.
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), container))
    except OmegaConfBaseException as error:
        raise IdcError(one_line(error)) from None
    config = _unveiled(config)
    assert isinstance(config, Config)
    limits.check_numbers(dataclasses.asdict(config))
    _check_groups(config)
    for key, allowed in CHOICES.items():
        value = _value(config, key)
        if value not in allowed and not (key == "device" and re.fullmatch(r"cuda:\d{1,3}", str(value))):
            raise IdcError(f"{key} must be one of {', '.join(allowed)}, got {shown(value)}{nearest(value, allowed)}")
    for key, allowed in SEVERAL.items():
        for entry in _value(config, key):
            if entry not in allowed:
                raise IdcError(f"{key} takes {', '.join(allowed)}, got {shown(entry)}{nearest(entry, allowed)}")
    config.budgets()
    for count in config.step_counts():
        limits.check_number("tsopt.num_inference_steps", count, limits.STEPS)
    _check_strings("evaluate.metrics", config.evaluate.metrics)
    paths = config.data.path if isinstance(config.data.path, list) else [config.data.path]
    if not paths or not all(isinstance(path, str) for path in paths if config.data.path is not None):
        raise IdcError(f"data.path must be a folder or a list of folders, got {config.data.path!r}")
    settings = config.task.models.get(config.model.name) or {}
    for key in ("guidance_scale", "image_guidance_scale"):
        if _value(config, key) is None and settings.get(key) is not None:
            raise IdcError(
                f"{key} must be a number for task={config.task.name}, got null; 1 switches that guidance off"
            )
    return config


# A letter that no command line and no YAML file holds: with it, resolved text is not resolved a second time.
_VEIL = "\0"


def _veiled(node: Any, *, gaps: bool) -> Any:
    """Resolved values with every "${" and "???" in them hidden from OmegaConf.

    Args:
        gaps: some value is missing, so that "???" has to remain.
    """
    if isinstance(node, dict):
        return {key: _veiled(value, gaps=gaps) for key, value in node.items()}
    if isinstance(node, list):
        return [_veiled(value, gaps=gaps) for value in node]
    if isinstance(node, str):
        return node + _VEIL if node == "???" and not gaps else node.replace("${", f"${_VEIL}{{")
    return node


def _unveiled(node: Any) -> Any:
    """The same values, dataclasses included, as they were."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        for entry in dataclasses.fields(node):
            setattr(node, entry.name, _unveiled(getattr(node, entry.name)))
        return node
    if isinstance(node, dict):
        return {key: _unveiled(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_unveiled(value) for value in node]
    return node.replace(_VEIL, "") if isinstance(node, str) else node


def _has_gaps(node: Any) -> bool:
    """Whether a value is still to be given, by OmegaConf's "???"."""
    if isinstance(node, dict):
        return any(map(_has_gaps, node.values()))
    return any(map(_has_gaps, node)) if isinstance(node, list) else isinstance(node, str) and node == "???"


def _with_home(node: Any, prefix: str = "") -> Any:
    """Values with the home folder for `~`, wherever they are paths: those of a YAML file come past the command line."""
    if not isinstance(node, dict):
        text = text_of(prefix.rstrip("."))
        return words.home(node) if text is not None and text.path else node
    return {key: _with_home(value, f"{prefix}{key}.") for key, value in node.items()}


def instantiate(node: dict[str, Any], key: str, *arguments: Any) -> Any:
    """Make a third-party object from its configuration: `_target_` names the class, the rest are its arguments.

    Args:
        key: where the configuration holds it, for errors.

    Raises:
        IdcError: no such class, or arguments that it does not take.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as make

    try:
        return make(node, *arguments)
    except InstantiationException as error:
        raise IdcError(f"{key}: {one_line(error)}") from None


def _check_groups(config: Config) -> None:
    """Names that choose something are names, the group's own, and free dictionaries hold what they are for."""
    for key in ("prune", "timesteps", "study", "compare"):
        name = _value(config, key).get("name")
        if not isinstance(name, str) or not name:
            raise IdcError(f"{key}.name must be a name, got {shown(name)}; choose by {key}=NAME")
    for name, parameters in config.metrics.items():
        if not isinstance(parameters, dict):
            raise IdcError(f"metrics.{name} must hold the metric's parameters by name, got {shown(parameters)}")
    unknown = [name for name in config.metrics if name not in registry.names("metric")]
    if unknown:
        raise IdcError(f"metrics.{unknown[0]}: no such metric{did_you_mean(unknown[0], registry.names('metric'))}")
    for key, several in (("image", config.image), ("runs", config.runs), ("model.path", config.model.path)):
        for entry in several if isinstance(several, list) else [several]:
            if entry == "" or not isinstance(entry, str | None):
                raise IdcError(f"{key} must name a file or a folder, got {shown(several)}")
        if several == []:
            raise IdcError(f"{key} must name a file or a folder, got an empty list")
    stages = config.compress.stages
    known = [name for name in registry.names("command") if name != "compress"]
    for name in stages:
        if name not in known:
            raise IdcError(f"compress.stages: no stage is called {shown(name)}; there are: {', '.join(known)}")
    if not stages or len(set(stages)) < len(stages):
        raise IdcError(f"compress.stages must name stages, each once, got {shown(stages)}")
    for before, after in ORDER:
        if before in stages and after in stages and stages.index(before) > stages.index(after):
            raise IdcError(f"compress.stages: {before} must come before {after}, got {', '.join(stages)}")
    _check_training(config)
    for key in ("plan.patterns", "plan.lists", "plan.samplers", "plan.fills", "plan.passes", "finetune.metrics"):
        if not _value(config, key):
            raise IdcError(f"{key} must name at least one, got an empty list")
    depths = config.plan.depths
    if depths is not None and not (depths and all(type(depth) is int and depth >= 1 for depth in depths)):
        raise IdcError(f"plan.depths must be null or depths from 1 on, got {shown(config.plan.depths)}")
    fallbacks = config.depth_search.fallbacks
    if fallbacks is not None and not (isinstance(fallbacks, list) and all(isinstance(f, list) for f in fallbacks)):
        raise IdcError(f"depth_search.fallbacks must be a list of lists of thresholds, got {shown(fallbacks)}")


def check_choices(config: Config, choices: Mapping[str, Any]) -> None:
    """Refuse a `name` that is not that of the file which its group chose: `task.name=x` is not `task=x`.

    Raises:
        IdcError: with the word that chooses it.
    """
    for group in ("task", "model", "data", "prune", "timesteps", "study", "compare"):
        node = getattr(config, group)
        name, chosen = node["name"] if isinstance(node, dict) else node.name, choices.get(group)
        if isinstance(chosen, str) and name != chosen.rpartition("/")[2] and name in _names_of(group):
            raise IdcError(f"{group}.name={name} contradicts {group}={chosen}; choose by {group}={name}")


def _names_of(group: str) -> list[str]:
    return [path.stem for path in (conf_dir() / group).glob("*.yaml")]


def _check_training(config: Config) -> None:
    if not isinstance(config.finetune.optimizer.get("_target_"), str):
        raise IdcError("finetune.optimizer._target_ must name a class, like torch.optim.AdamW")
    if not any((config.loss.task, config.loss.output, config.loss.features)):
        raise IdcError("loss.task, loss.output and loss.features are all 0, so nothing would be trained; raise one")
    trainer = config.trainer
    if trainer.get("max_steps") == 0 or (trainer.get("max_steps") == -1 and not trainer.get("max_time")):
        raise IdcError(
            "set trainer.max_steps to at least 1, or to -1 with a limit by trainer.max_time; "
            f"got {trainer['max_steps']}"
        )
    accelerator = trainer.get("accelerator")
    if accelerator not in (None, *ACCELERATORS):
        raise IdcError(
            f"trainer.accelerator must be null or one of {', '.join(ACCELERATORS)}, got {shown(accelerator)}"
        )
    devices = trainer.get("devices", 1)
    counted = type(devices) is int and (devices >= 1 or devices == -1)
    listed = isinstance(devices, list) and bool(devices) and all(type(device) is int for device in devices)
    if not counted and not listed and devices != "auto":
        raise IdcError(f"trainer.devices must be a number from 1 on, a list of them or auto, got {shown(devices)}")


def _check_strings(key: str, value: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise IdcError(f"{key} must be a list of names, like [psnr,ssim], got {value!r}")


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def identity(composed: DictConfig) -> dict[str, Any]:
    """The resolved configuration without the keys that do not change a result."""
    container = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(container, dict)
    if words.is_file_of_prompts(container["prompt"]):
        container["prompt"] = words.prompts(container["prompt"])
    return {str(k): v for k, v in container.items() if k not in NOT_IDENTITY}


def to_yaml(composed: DictConfig) -> str:
    return OmegaConf.to_yaml(composed, resolve=True)


def as_text(shown: str, *, ascii_only: bool) -> str:
    """A configuration as `--cfg` prints it, with texts as they were typed in place of what OmegaConf needs for them.

    Args:
        ascii_only: the terminal knows no other letters: YAML has escapes, which read back to the same text.
    """
    if ("\\${" not in shown and "${oc.select:_,???}" not in shown) and (not ascii_only or shown.isascii()):
        return shown
    loaded = OmegaConf.create(shown)
    if not OmegaConf.is_dict(loaded):
        return shown

    def typed(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: typed(value) for key, value in node.items()}
        if isinstance(node, list):
            return [typed(value) for value in node]
        return words.unescaped(node) if isinstance(node, str) else node

    head = "".join(line for line in shown.splitlines(keepends=True)[:1] if line.startswith("#"))
    node = typed(OmegaConf.to_container(loaded, resolve=False))
    return head + str(
        yaml.dump(
            node,
            default_flow_style=False,
            allow_unicode=not ascii_only,
            sort_keys=False,
            Dumper=get_omega_conf_dumper(),
        )
    )


def known_keys(composed: DictConfig) -> list[str]:
    """Every key of the tree, dotted."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key in node:
            yield f"{prefix}{key}"
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
                yield from walk(child, f"{prefix}{key}.")

    return list(walk(composed, ""))


def one_line(error: BaseException | None) -> str:
    """Hydra's and OmegaConf's messages, with their causes, as one line."""
    parts: list[str] = []
    while error is not None:
        for line in (text.strip() for text in str(error).splitlines()):
            if line.startswith(("Config search path", "Set the environment", "See https")):
                break
            if line.startswith("To append to your config"):
                continue
            if line and line not in parts and not re.match(r"(object_type|reference_type|full_key)\s*[:=]", line):
                parts.append(line)
        error = error.__cause__
    return " ".join(parts)


def suggest(message: str, keys: Callable[[], list[str]]) -> str:
    """The nearest valid name for the key or group option that a message complains about; "" if none is near.

    Args:
        keys: gives every valid key; called only where a key is at fault.
    """
    group = re.search(r"Could not find '[^']+/([^'/]+)'.*Available options in '[^']+':\s*(.*)$", message)
    if group:
        near = difflib.get_close_matches(group[1], group[2].split(), n=1, cutoff=0.4)
        return f"; did you mean {near[0]!r}?" if near else ""
    bad = re.search(r"Could not override '?([\w.@/+~-]+)'?|Key '(\w+)' not in 'Config'", message)
    if bad is None:
        return ""
    wrong = (bad[1] or bad[2]).lstrip("+~")
    near = difflib.get_close_matches(wrong, keys(), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near and near[0] != wrong else ""
