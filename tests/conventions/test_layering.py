"""Who may import whom: `cli -> config -> stages -> {tasks, ...} -> {adapters, models} -> core`, read from the source.

Imports under TYPE_CHECKING load nothing, so they only have to respect the order of layers, not the third-party rules.
"""

import ast
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "idcompress"

# From the command line down; a module imports from its own layer's part or from layers below it.
LAYERS = (
    {"cli"},
    {"config"},
    {"studies"},
    {"stages"},
    {"loading"},
    {"datasets"},
    {"tasks", "pruning", "timesteps", "metrics", "data"},
    {"adapters", "models"},
    {"schedulers"},
    {"core"},
)
LEAVES = {"types", "errors", "registry", "artifacts", "console"}
# Reads run folders and nothing else; stages.report calls it.
REPORT = "report"
# Folders whose files are looked up by name: each may be changed without a look at the others.
REGISTRY_FOLDERS = {"studies", "stages", "tasks", "pruning", "timesteps", "metrics", "datasets"}

HYDRA = {"hydra", "omegaconf"}
HYDRA_MODULES = {"idcompress.cli", "idcompress.config"}
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
MODEL_PARTS = {"adapters", "models", "schedulers"}

# (importer, imported) pairs that the order of layers forbids, each with the reason.
ALLOWED = {
    (
        "stages",
        "config",
    ): "a stage's one argument is the Config dataclass; stages._run turns what Hydra composed into it",
    ("studies", "config"): "a study's first argument is the same",
    ("tasks", "data"): "a task makes its examples from photographs and edits",
    ("metrics", "data"): "canny F1 compares the edges that the control image was made with",
    ("adapters", "models"): "adapters load our own pipeline classes (models.stablesr) beside diffusers'",
}


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
    assert ("idcompress.schedulers", "idcompress.core.ddim.predict", False) in found
    assert ("idcompress.cli", "hydra", False) in found  # inside a function
    assert ("idcompress.stages._run", "omegaconf.DictConfig", True) in found
    assert ("idcompress.stages._run", "idcompress.registry", False) in found  # from .. import
    assert len(OURS) > 100


def test_every_part_has_a_place():
    parts = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    known = set.union(*LAYERS) | LEAVES | {REPORT, "__init__", "__main__"}
    assert parts <= known, f"give these a layer here and in the style guide: {parts - known}"


def test_imports_go_down():
    wrong = [
        entry
        for entry, importer, imported in own_imports()
        if imported not in LEAVES
        and importer not in LEAVES | {REPORT}
        and (importer != "stages" if imported == REPORT else level(imported) <= level(importer))
        and (importer, imported) not in ALLOWED
    ]
    assert not wrong, show(wrong)


def test_every_exception_is_needed():
    used = {(importer, imported) for _, importer, imported in own_imports()}
    assert set(ALLOWED) <= used


def test_leaves_import_leaves():
    wrong = [e for e, importer, imported in own_imports() if importer in LEAVES and imported not in LEAVES]
    assert not wrong, show(wrong)


def test_the_report_reads_artifacts_only():
    wrong = [e for e, importer, imported in own_imports() if importer == REPORT and imported not in LEAVES]
    wrong += [e for e in THIRD_PARTY if part(e.module) == REPORT and e.target.partition(".")[0] == "torch"]
    assert not wrong, show(wrong)


def test_only_cli_loads_the_whole_program():
    """Nothing but the lazy package and the stages knows `loading`, and nothing imports the command line."""
    wrong = [e for e, importer, imported in own_imports() if imported == "cli"]
    wrong += [e for e, importer, imported in own_imports() if imported == "loading" and importer != "stages"]
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
    """Adding a task, metric or strategy is one file: no stage and no study names one. Helpers (with `_`) and cost
    metrics may be named; a study also names stages, being made of them."""
    costs = {f"idcompress.metrics.{name}" for name in ("latency", "macs", "parameters")}
    wrong = []
    for entry, importer, imported in own_imports():
        if importer in ("stages", "studies") and imported in REGISTRY_FOLDERS - {"stages"}:
            words = entry.target.split(".")
            if not words[2].startswith("_") and ".".join(words[:3]) not in costs:
                wrong.append(entry)
    assert not wrong, show(wrong)


def test_hydra_stays_in_two_modules():
    wrong = [
        e
        for e in THIRD_PARTY
        if e.target.partition(".")[0] in HYDRA
        and e.module not in HYDRA_MODULES
        and not (e.module == "idcompress.stages._run" and e.typing_only)
    ]
    assert not wrong, show(wrong)


def test_model_libraries_stay_in_adapters_and_models():
    wrong = [
        e
        for e in THIRD_PARTY
        if e.target.partition(".")[0] in MODEL_LIBRARIES and part(e.module) not in MODEL_PARTS and not e.typing_only
    ]
    assert not wrong, show(wrong)


@pytest.mark.parametrize("name", sorted(LEAVES | {"config", "cli"}))
def test_light_modules_do_not_import_torch(name):
    heavy = {"torch", "numpy", "PIL", "cv2", *MODEL_LIBRARIES}
    for path in (PACKAGE / f"{name}.py", *(PACKAGE / name).rglob("*.py")):
        if path.is_file():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            top = {node.lineno for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))}
            wrong = [e for e in imports_of(path) if e.line in top and e.target.partition(".")[0] in heavy]
            assert not wrong, show(wrong)
