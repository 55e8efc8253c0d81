"""docs/architecture.md draws lines from a command to the inner loop: each function that it names calls the next one."""

import ast
import functools
import itertools
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from idcompress import registry

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MOST_FILES = 6  # that somebody has to open to follow `idc tsopt`


class Stop(NamedTuple):
    file: str  # idcompress/bench/bench.py
    function: str  # images, or Bench.images

    @property
    def name(self) -> str:
        return self.function.rpartition(".")[2]

    def __str__(self) -> str:
        return f"{self.file}: {self.function}"


def lines_of(page):
    """{title: stops} of the page's blocks that begin with ```line."""
    blocks = re.findall(r"^```line (.+)\n((?:.+\n)+?)```$", page, flags=re.MULTILINE)
    return {title: [Stop(*stop.split(": ")) for stop in text.splitlines()] for title, text in blocks}


LINES = lines_of(PAGE)


@functools.cache
def tree_of(file):
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def find(stop):
    """The function's node; None where its file or the function is missing."""
    if not (ROOT / stop.file).is_file():
        return None
    node = tree_of(stop.file)
    for name in stop.function.split("."):
        kinds = (ast.FunctionDef, ast.ClassDef)
        node = next((child for child in node.body if isinstance(child, kinds) and child.name == name), None)
        if node is None:
            return None
    return node if isinstance(node, ast.FunctionDef) else None


def file_of(module):
    """idcompress/core/sample.py for idcompress.core.sample, idcompress/core/__init__.py for idcompress.core."""
    path = Path(*module.split("."))
    return str(path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py"))


def imports(file, function):
    """{local name: (file, name there)} of what a function sees; the name is None where it is a module."""
    package = Path(file).parent.parts
    found = {}
    for node in [*tree_of(file).body, *ast.walk(function)]:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            module = ".".join(part for part in base if part)
            for alias in node.names:
                inner = file_of(f"{module}.{alias.name}")
                target = (inner, None) if (ROOT / inner).is_file() else (file_of(module), alias.name)
                found[alias.asname or alias.name] = target
    return found


def looked_up(function, name):
    """The folders of the registry that a local name stands for: `entry = registry.load("task", …)`, `.Task` or not."""
    folders = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            for call in ast.walk(node.value):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "registry.load":
                    folders.add(registry._FOLDERS[ast.literal_eval(call.args[0])])
    return folders


def called(function):
    """What a function calls, or hands to functools.partial: Name and Attribute nodes."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            yield node.func
            if ast.unparse(node.func) == "functools.partial":
                yield node.args[0]


def calls(stop, following):
    """Whether a function calls the next one.

    A bare name must be defined in the same file or imported from the next one's. So must an attribute of an imported
    module; an attribute of something that the registry gave must be in that kind's folder. Of any other object, whose
    class no reader of the source can know, the method's name is enough.
    """
    function = find(stop)
    known = imports(stop.file, function)
    for node in called(function):
        if isinstance(node, ast.Name):
            inside = {child.name for child in tree_of(stop.file).body if isinstance(child, ast.FunctionDef)}
            here = (stop.file, node.id) if node.id in inside else None
            if known.get(node.id, here) == (following.file, following.function):
                return True
        elif isinstance(node, ast.Attribute) and node.attr == following.name:
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner in known and known[owner][1] is None:
                if known[owner][0] == following.file:
                    return True
            elif folders := looked_up(function, owner):
                if Path(following.file).parent.name in folders:
                    return True
            elif owner not in known:
                return True
    return False


def faults(stops):
    """What a line promises and the source does not keep, in words."""
    missing = [f"{stop} does not exist" for stop in stops if find(stop) is None]
    if missing:
        return missing
    pairs = itertools.pairwise(stops)
    return [f"{stop} does not call {following}" for stop, following in pairs if not calls(stop, following)]


def test_the_page_draws_the_lines():
    assert {"tsopt", "compress"} <= LINES.keys()
    for title in ("tsopt", "compress"):
        assert LINES[title][0] == Stop("idcompress/cli.py", "main")
        assert LINES[title][-1] == Stop("idcompress/core/sample.py", "walk")


@pytest.mark.parametrize("title", LINES)
def test_each_function_calls_the_next(title):
    assert len(LINES[title]) > 1
    assert not faults(LINES[title])


def test_few_files_lead_to_the_inner_loop():
    files = {stop.file for stop in LINES["tsopt"]}
    assert len(files) <= MOST_FILES, sorted(files)


@pytest.mark.parametrize("title", [title for title in LINES if ": " in title])
def test_side_lines_begin_on_the_line(title):
    assert LINES[title][0] in LINES[title.partition(": ")[0]]


def test_the_readme_names_the_same_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    sentence = re.search(r"From the command line to the inner loop: ((?:`[\w/]+\.py`,?\s*)+)", text)
    assert sentence, "README.md does not say how to get from the command line to the inner loop"
    named = [f"idcompress/{name}" for name in re.findall(r"`([\w/]+\.py)`", sentence[1])]
    assert named == list(dict.fromkeys(stop.file for stop in LINES["tsopt"]))


# the checks themselves


@pytest.mark.parametrize(
    "broken",
    [
        ["idcompress/cli.py: main", "idcompress/cli.py: run_nothing"],  # no such function
        ["idcompress/cli.py: main", "idcompress/commands.py: run"],  # no such file
        ["idcompress/core/sample.py: walk", "idcompress/core/sample.py: sample"],  # the other way round
        ["idcompress/bench/bench.py: Bench.images", "idcompress/core/sample.py: walk"],  # not called there
        ["idcompress/bench/bench.py: Bench.images", "idcompress/bench/translate.py: sampling"],  # imported, not called
        ["idcompress/bench/bench.py: Bench.images", "idcompress/stages/translate.py: run"],  # no attribute of that name
        ["idcompress/stages/_values.py: configured_search", "idcompress/tasks/_task.py: timesteps"],  # not there
        ["idcompress/stages/compress.py: run", "idcompress/studies/order.py: run"],  # looked up in another folder
    ],
    ids=lambda stops: " -> ".join(stops),
)
def test_a_broken_line_is_seen(broken):
    assert faults([Stop(*stop.split(": ")) for stop in broken])
