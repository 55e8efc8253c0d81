"""A task owns every word about itself: its name, and the names of what it alone has, stand in its file.

Other code asks a task, a pipeline or a network for what it needs. The words are looked for as parts of longer ones, too
(`controlnet_cond`), in code, strings and comments; papers are cited by names in capitals, which do not count.
"""

import importlib
import inspect
from pathlib import Path

import pytest

from idcompress import registry

PACKAGE = Path(__file__).resolve().parents[2] / "idcompress"
TASKS = registry.names("task")
# Components that many pipelines of diffusers have.
SHARED = {"vae", "unet", "scheduler", "text_encoder", "tokenizer"}
# What else only models of one task know.
FURTHER = {
    "stablesr": {
        "structure_features",
        "structure_channels",
        "num_structure_levels",
        "feature_blocks",
        "fusion_levels",
        "fusion_blocks",
        "fidelity_weight",
        "return_features",
        "color_fix",
    }
}
# (file, word) that stand elsewhere, each with the reason.
EXCEPTIONS = {
    ("adapters/controlnet.py", "controlnet"): "cuts diffusers' own ControlNetModel",
    ("adapters/side_networks.py", "controlnet"): "tells diffusers' own ControlNetModel from other components",
    ("adapters/cut_models.py", "controlnet"): "gives diffusers' own ControlNetModel a class that saves it cut",
    ("adapters/cut_models.py", "stablesr"): "exported folders name the class of the cut U-Net in this module",
    ("adapters/graphs.py", "controlnet"): "controlnet_cond is an argument of diffusers' own ControlNetModel",
    ("costs/network.py", "controlnet"): "controlnet_cond is an argument of diffusers' own ControlNetModel",
    ("sources/components.py", "controlnet"): "compares diffusers' own ControlNetModel with its U-Net",
    ("export/stock_form.py", "controlnet"): "pads diffusers' own ControlNetModel to its stock form",
}


def words(task: str) -> set[str]:
    """What only this task may say: its name, and those of components and arguments that it alone has."""
    entry = registry.load("task", task).Task
    pipeline_class = getattr(importlib.import_module(entry.pipeline_library), entry.pipeline_class)
    ours = entry.pipeline_library != "diffusers"
    components = set(inspect.signature(pipeline_class.__init__).parameters) - {"self"} - SHARED if ours else set()
    return {task} | {*entry.networks_of_a_step} - SHARED | components | FURTHER.get(task, set())


def strangers(package: Path, task: str, found_in: set[str]) -> set[tuple[str, str]]:
    """(file, word) for every word of a task in a file that is not the task's own."""
    own = (f"tasks/{task}.py", f"models/{task}/", "models/official/", "models/tiny/")
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    return {
        (name, word)
        for name, path in files.items()
        if not name.startswith(own)
        for word in found_in
        if word in path.read_text(encoding="utf-8")
    }


@pytest.mark.parametrize("task", TASKS)
def test_no_word_of_a_task_stands_elsewhere(task):
    found = strangers(PACKAGE, task, words(task)) - EXCEPTIONS.keys()
    assert not found, f"let the task say it, or a class that it names: {sorted(found)}"


def test_every_exception_is_needed():
    found = set.union(*(strangers(PACKAGE, task, words(task)) for task in TASKS))
    assert EXCEPTIONS.keys() <= found, EXCEPTIONS.keys() - found


def test_the_words_are_the_right_ones():
    assert words("ip2p") == {"ip2p"}
    assert words("controlnet") == {"controlnet"}
    assert words("stablesr") >= {"stablesr", "structure_encoder", "prompt_embedding"}
    assert not words("stablesr") & SHARED


def test_a_word_in_a_wrong_place_is_found(tmp_path):
    for name in ("tasks/stablesr.py", "models/stablesr/unet.py", "models/tiny/build.py", "costs/network.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('parts = ["structure_encoder"]\n')
    (tmp_path / "costs/macs.py").write_text("# of task=stablesr\n")
    found = strangers(tmp_path, "stablesr", words("stablesr"))
    assert found == {("costs/network.py", "structure_encoder"), ("costs/macs.py", "stablesr")}
