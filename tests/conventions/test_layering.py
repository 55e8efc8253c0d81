"""Who may import whom, read from the source: the command line on top, the core at the bottom, as LAYERS lists them.

A look-up in the registry, `registry.load("metric", ...)`, counts as an import of the folder of that kind: otherwise it
could close a circle that no import statement shows. Imports under TYPE_CHECKING load nothing, so they only have to
respect the order of layers, not the third-party rules.
"""

import ast
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from idcompress.registry import _FOLDERS as FOLDER_OF_KIND

PACKAGE = Path(__file__).resolve().parents[2] / "idcompress"

# From the command line down; a module imports from its own layer's part or from layers below it.
LAYERS = (
    {"cli"},
    {"launch"},
    {"sweeps"},
    {"config"},
    {"studies"},
    {"stages"},
    {"report", "export"},
    {"bench"},
    {"tasks", "samplers", "timesteps", "pruning", "metrics", "datasets"},
    {"sources", "costs"},
    {"adapters"},
    {"models", "images"},
    {"schedulers"},
    {"core"},
)
LEAVES = {"types", "errors", "registry", "runs", "console", "words", "limits", "_moved"}
# Reads run folders and nothing else.
REPORT = "report"
# Folders whose files are looked up by name: each may be changed without a look at the others.
REGISTRY_FOLDERS = set(FOLDER_OF_KIND.values())
# Rooms that are handed values: whoever knows the configuration object stands above them.
WITHOUT_CONFIG = {"bench", "costs", "export", "sources"}
# What stages share; everything else that begins with an underscore is a stage's own.
SHARED_BY_STAGES = {"_lab", "_run", "_ready", "_values", "_preview"}
# The modules that a leaf may import from the core: plain values, which load no torch.
PLAIN_CORE = {"idcompress.core.plan", "idcompress.core.cut"}

HYDRA = {"hydra", "omegaconf"}
HYDRA_MODULES = {"idcompress.cli", "idcompress.launch", "idcompress.sweeps", "idcompress.config"}
MODEL_LIBRARIES = {
    "diffusers",
    "transformers",
    "lightning",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "peft",
    "huggingface_hub",
}
# Rooms that load models, call them, or write them in another form.
MODEL_PARTS = {"adapters", "models", "schedulers", "sources", "export"}
# Metrics keep networks of their own, whose weights they look for where the hub's library keeps its downloads.
MODEL_MODULES = {"idcompress.metrics._weights"}

# (importer, imported) pairs that the order of layers forbids, each with the reason.
ALLOWED = {
    (
        "stages",
        "config",
    ): "a stage's one argument is the Config dataclass; stages._run turns what Hydra composed into it",
    ("studies", "config"): "a study's first argument is the same",
}
# (importer, kind) pairs of look-ups in the registry that the order of layers forbids, each with the reason.
ALLOWED_LOOKUPS = {
    ("sources", "task"): "a recipe names its task, and the task says which pipeline class its folder is loaded as",
    ("sources", "prune"): "a recipe's cut names the prune method that applies it to the loaded model",
    ("stages", "study"): "`idc study` runs the study that it is given, and studies are made of what stages share",
}
# (module, imported module) pairs by which a leaf reaches below itself, each with the reason.
ALLOWED_OF_LEAVES: dict[tuple[str, str], str] = {}


class Import(NamedTuple):
    module: str  # who imports, like idcompress.stages.tsopt
    target: str  # what, absolute
    line: int
    typing_only: bool


def imports_of(path: Path, package: Path = PACKAGE) -> list[Import]:
    """Every import statement of a file, at any depth, with its absolute target."""
    parts = (package.name, *path.relative_to(package).with_suffix("").parts)
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for child in ast.walk(statement)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".") if is_package else module.split(".")[:-1]
            base = here[: len(here) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            targets = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [Import(module, target, node.lineno, id(node) in typing_only) for target in targets]
    return found


class Lookup(NamedTuple):
    module: str  # who looks something up
    kind: str  # of what; "?" where it is no literal
    line: int


def lookups_of(path: Path, package: Path = PACKAGE) -> list[Lookup]:
    """Every `registry.load(kind, ...)` of a file."""
    module = ".".join((package.name, *path.relative_to(package).with_suffix("").parts))
    return [
        Lookup(module, node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else "?", node.lineno)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "registry.load"
    ]


LOOKUPS = [entry for path in sorted(PACKAGE.rglob("*.py")) for entry in lookups_of(path)]
IMPORTS = [entry for path in sorted(PACKAGE.rglob("*.py")) for entry in imports_of(path)]
OURS = [entry for entry in IMPORTS if entry.target.startswith("idcompress.")]
THIRD_PARTY = [
    entry
    for entry in IMPORTS
    if (top := entry.target.partition(".")[0]) != "idcompress"
    and top not in sys.stdlib_module_names
    and top != "__main__"
]


def part(module: str) -> str:
    """stages for idcompress.stages.tsopt, cli for idcompress.cli, "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def is_part(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def level(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def show(entries) -> str:
    return "\n".join(f"{entry.module}:{entry.line} imports {entry.target}" for entry in entries)


def own_imports():
    """(entry, importing part, imported part) between parts of the package."""
    for entry in OURS:
        importer, imported = part(entry.module), part(entry.target)
        if importer and is_part(imported) and importer != imported:
            yield entry, importer, imported


def test_the_reader_sees_imports():
    """The checks below are worth what this finds."""
    found = {(e.module, e.target, e.typing_only) for e in IMPORTS}
    assert ("idcompress.schedulers", "diffusers.DDIMScheduler", False) in found
    assert ("idcompress.schedulers", "idcompress.core.ddim.ddim_step", False) in found
    assert ("idcompress.cli", "hydra._internal.utils.get_args_parser", False) in found  # inside a function
    assert ("idcompress.stages._run", "omegaconf.DictConfig", True) in found
    assert ("idcompress.stages._run", "idcompress.registry", False) in found  # from .. import
    assert len(OURS) > 100
    assert ("idcompress.bench.bench", "metric") in {(e.module, e.kind) for e in LOOKUPS}


def test_every_part_has_a_place():
    parts = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    known = set.union(*LAYERS) | LEAVES | {"__init__", "__main__"}
    assert parts <= known, f"give these a layer here and in the style guide: {parts - known}"


def test_imports_go_down():
    wrong = [
        entry
        for entry, importer, imported in own_imports()
        if imported not in LEAVES
        and importer not in LEAVES
        and level(imported) <= level(importer)
        and (importer, imported) not in ALLOWED
    ]
    assert not wrong, show(wrong)


def test_lookups_go_down():
    """What the registry loads by name lies below whoever asks for it, or in the asker's own folder."""
    unknown = [entry for entry in LOOKUPS if entry.kind not in FOLDER_OF_KIND]
    assert not unknown, f"name the kind where it is looked up: {unknown}"
    wrong = [
        entry
        for entry in LOOKUPS
        if (importer := part(entry.module)) != (folder := FOLDER_OF_KIND[entry.kind])
        and (importer in LEAVES or level(folder) <= level(importer))
        and (importer, entry.kind) not in ALLOWED_LOOKUPS
    ]
    assert not wrong, "\n".join(f"{entry.module}:{entry.line} looks up a {entry.kind}" for entry in wrong)


def test_modules_are_loaded_by_name_in_few_places():
    """Elsewhere an import by name would escape the checks of this file.

    The last four load an optional package, or the library that a task or a model folder names for a class.
    """
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "import_module(" in path.read_text(encoding="utf-8")
    }
    assert found == {
        *("__init__.py", "_moved.py", "registry.py"),
        "export/onnx.py",
        "metrics/_inception.py",
        "sources/components.py",
        "sources/load.py",
    }


def test_every_exception_is_needed():
    used = {(importer, imported) for _, importer, imported in own_imports()}
    assert set(ALLOWED) <= used
    assert set(ALLOWED_LOOKUPS) <= {(part(entry.module), entry.kind) for entry in LOOKUPS}
    assert set(ALLOWED_OF_LEAVES) <= {(e.module, ".".join(e.target.split(".")[:3])) for e in OURS}


def test_leaves_import_leaves():
    """And plain values of the core; for types, whatever a type is named after."""
    wrong = [
        entry
        for entry, importer, imported in own_imports()
        if importer in LEAVES
        and imported not in LEAVES
        and not (importer == "types" and entry.typing_only)
        and (target := ".".join(entry.target.split(".")[:3])) not in PLAIN_CORE
        and (entry.module, target) not in ALLOWED_OF_LEAVES
    ]
    assert not wrong, show(wrong)


def test_some_rooms_do_not_know_the_configuration():
    wrong = [e for e, importer, imported in own_imports() if importer in WITHOUT_CONFIG and imported == "config"]
    assert not wrong, show(wrong)


def test_helpers_of_a_stage_are_its_own():
    """A stage, or a study, takes from another stage nothing private but what stages share by intention."""
    wrong = []
    for entry in OURS:
        package, folder, *names = entry.target.split(".")
        if (package, folder) == ("idcompress", "stages") and part(entry.module) in ("stages", "studies"):
            private = {name for name in names if name.startswith("_")}
            if not private <= SHARED_BY_STAGES:
                wrong.append(entry)
    assert not wrong, show(wrong)


def test_the_report_reads_artifacts_only():
    wrong = [e for e, importer, imported in own_imports() if importer == REPORT and imported not in LEAVES]
    wrong += [e for e in THIRD_PARTY if part(e.module) == REPORT and e.target.partition(".")[0] == "torch"]
    assert not wrong, show(wrong)


def test_only_cli_loads_the_whole_program():
    """Nothing imports the command line, nothing but it launches jobs, and below stages nothing loads a model."""
    wrong = [e for e, importer, imported in own_imports() if imported == "cli"]
    wrong += [e for e, importer, imported in own_imports() if imported == "launch" and importer != "cli"]
    loading = [(e, importer) for e, importer, _ in own_imports() if e.target.startswith("idcompress.sources.load.")]
    wrong += [e for e, importer in loading if importer != "stages"]
    assert not wrong, show(wrong)


def test_the_core_stands_alone():
    wrong = [e for e, importer, imported in own_imports() if importer == "core"]
    assert not wrong, show(wrong)
    outside = [e for e in THIRD_PARTY if part(e.module) == "core"]
    outside = [e for e in outside if e.target.partition(".")[0] not in {"torch", "jaxtyping", "numpy", "scipy"}]
    assert not outside, show(outside)
    io = {"os", "io", "pathlib", "json", "logging", "subprocess", "shutil", "tempfile", "socket", "sys"}
    reading = [e for e in IMPORTS if part(e.module) == "core" and e.target.partition(".")[0] in io]
    assert not reading, show(reading)


def test_core_and_timesteps_keep_their_annotations():
    """jaxtyping checks shapes under pytest only where annotations are not strings."""
    futures = [e for e in IMPORTS if e.target == "__future__.annotations"]
    wrong = [e for e in futures if part(e.module) in {"core", "timesteps"}]
    assert not wrong, show(wrong)


def test_sibling_registry_folders_do_not_know_each_other():
    wrong = [e for e, a, b in own_imports() if {a, b} <= REGISTRY_FOLDERS and a not in ("stages", "studies")]
    assert not wrong, show(wrong)


def test_stages_reach_entries_by_name():
    """Adding a task, metric or strategy is one file: no stage and no study names one. Helpers (with `_`) may be named;
    a study also names stages, being made of them."""
    wrong = []
    for entry, importer, imported in own_imports():
        if importer in ("stages", "studies") and imported in REGISTRY_FOLDERS - {"stages"}:
            words = entry.target.split(".")
            if not words[2].startswith("_"):
                wrong.append(entry)
    assert not wrong, show(wrong)


def test_hydra_stays_in_few_modules():
    wrong = [
        e
        for e in THIRD_PARTY
        if e.target.partition(".")[0] in HYDRA
        and e.module not in HYDRA_MODULES
        and not (e.module == "idcompress.stages._run" and e.typing_only)
    ]
    assert not wrong, show(wrong)


def test_model_libraries_stay_where_models_are():
    wrong = [
        e
        for e in THIRD_PARTY
        if e.target.partition(".")[0] in MODEL_LIBRARIES
        and part(e.module) not in MODEL_PARTS
        and e.module not in MODEL_MODULES
        and not e.typing_only
    ]
    assert not wrong, show(wrong)


PLAIN_FILES = sorted("/".join(module.split(".")[1:]) for module in PLAIN_CORE)


@pytest.mark.parametrize("name", [*sorted(LEAVES | {"config", "cli", "launch", "sweeps"}), *PLAIN_FILES])
def test_light_modules_do_not_import_torch(name):
    heavy = {"torch", "numpy", "PIL", "cv2", *MODEL_LIBRARIES}
    for path in (PACKAGE / f"{name}.py", *(PACKAGE / name).rglob("*.py")):
        if path.is_file():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            top = {node.lineno for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))}
            wrong = [e for e in imports_of(path) if e.line in top and e.target.partition(".")[0] in heavy]
            assert not wrong, show(wrong)
