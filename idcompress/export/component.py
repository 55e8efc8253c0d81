"""A class of this program as a module that stands alone, for pipelines that diffusers runs without this program.

diffusers takes a component's class from a Python file in the component's folder, where model_index.json names that file
and the user trusts it (`trust_remote_code=True`). The file is made of the class's own source and of all that it uses.
"""

from __future__ import annotations

import ast
import inspect
import pprint
import sys
from collections.abc import Iterable
from importlib.util import resolve_name
from pathlib import Path
from textwrap import indent
from typing import Any

from ..adapters.following import FollowsPlan
from ..core.plan import Plan
from ..runs import files
from ..schedulers import CARRIED

CARRIED_PIPELINE = "pipeline"  # the module that brings a pipeline's class
_HEAD = '''\
"""{summary}

Written by idcompress from its own code; it needs torch and diffusers alone.
"""

from __future__ import annotations  # some of the types are not here

'''

_FOLLOWING = '''

class {name}(FollowsPlan, {base}):
    """The pipeline, over the plan of this folder."""

    plan = Plan.from_json(
{plan}
    )
    side, order = {side!r}, {order}
'''


def carry_scheduler(pipeline: Any, folder: Path) -> None:
    """Put the scheduler's class into a saved pipeline folder, as scheduler/fixed_timesteps.py, and name it there."""
    entry = type(pipeline.scheduler)
    files.write_text(folder / "scheduler" / f"{CARRIED}.py", standalone(entry))
    index = files.read_json(folder / "model_index.json", "model")
    files.write_json(folder / "model_index.json", index | {"scheduler": [CARRIED, entry.__name__]})


def carry_plan(pipeline: Any, folder: Path) -> None:
    """Put the class of a pipeline that follows a plan into its saved folder, as pipeline.py, and name it there.

    Args:
        pipeline: of `adapters.following`; its scheduler's class is put there, too.
    """
    base = type(pipeline).__bases__[1]
    stock = base.__module__.partition(".")[0] == "diffusers"
    text = standalone(
        FollowsPlan, Plan, *([] if stock else [base]), imports=["import diffusers"] * stock
    ) + _FOLLOWING.format(
        name=base.__name__,
        base=f"diffusers.{base.__name__}" if stock else base.__name__,
        plan=indent(pprint.pformat(pipeline.plan.to_json(), width=112, compact=True, sort_dicts=False), " " * 8),
        side=pipeline.side,
        order=pipeline.order,
    )
    files.write_text(folder / f"{CARRIED_PIPELINE}.py", text)
    _name_pipeline(base.__name__, folder)
    carry_scheduler(pipeline, folder)


def carry_pipeline(pipeline: Any, folder: Path) -> bool:
    """Put the pipeline's class into its saved folder, as pipeline.py, and name it there, if diffusers does not have it.

    Returns:
        whether the folder brings it.
    """
    entry = type(pipeline)
    if entry.__module__.partition(".")[0] == "diffusers":
        return False
    files.write_text(folder / f"{CARRIED_PIPELINE}.py", standalone(entry))
    _name_pipeline(entry.__name__, folder)
    return True


def _name_pipeline(class_name: str, folder: Path) -> None:
    index = files.read_json(folder / "model_index.json", "model")
    files.write_json(folder / "model_index.json", index | {"_class_name": [CARRIED_PIPELINE, class_name]})


def standalone(*entries: type[Any], imports: Iterable[str] = ()) -> str:
    """The text of a module with some classes and whatever they use of this program; other libraries are imported.

    Raises:
        ValueError: two things that are used have the same name.
    """
    package = __name__.partition(".")[0]
    sources: dict[str, _Source] = {}
    imported = dict.fromkeys(imports)
    origins: dict[str, str] = {}
    parts: list[str] = []

    def need(name: str, module: str) -> None:
        """Add what a module calls by a name, after all that this uses itself."""
        if module not in sources:
            sources[module] = _Source(module)
        source = sources[module]
        node = source.named.get(name)
        if node is None:  # a builtin, or a variable inside
            return
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            origin = _origin(node, module)
            if origin.partition(".")[0] == package:
                need(name, origin)
            else:
                imported[ast.unparse(_alone(node, name))] = None
            return
        if origins.setdefault(name, module) != module:
            raise ValueError(f"{entries[0].__name__} uses {name} of {module} and of {origins[name]}")
        if node in source.taken:
            return
        source.taken.append(node)
        for used in _names(node):
            need(used, module)
        parts.append(source.text(node))

    for entry in entries:
        need(entry.__name__, entry.__module__)
    summary = (inspect.getdoc(sys.modules[entries[0].__module__]) or "").partition("\n")[0]
    return _HEAD.format(summary=summary) + "\n".join(sorted(imported)) + "\n\n\n" + "\n\n\n".join(parts) + "\n"


class _Source:
    """A module's text, and which statement defines or imports each name."""

    def __init__(self, module: str) -> None:
        text = inspect.getsource(sys.modules[module])
        self.lines = text.splitlines()
        self.taken: list[ast.stmt] = []
        self.named: dict[str, ast.stmt] = {}
        for node in ast.parse(text).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self.named |= {alias.asname or alias.name: node for alias in node.names}
            elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                self.named[node.name] = node
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                self.named[node.target.id] = node
            elif isinstance(node, ast.Assign):
                self.named |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}

    def text(self, node: ast.stmt) -> str:
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
        return "\n".join(self.lines[first - 1 : node.end_lineno])


def _origin(node: ast.Import | ast.ImportFrom, module: str) -> str:
    """The module that is imported, or imported from."""
    if isinstance(node, ast.Import):
        return node.names[0].name
    return resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])


def _alone(node: ast.Import | ast.ImportFrom, name: str) -> ast.stmt:
    """The import of one name."""
    aliases = [alias for alias in node.names if (alias.asname or alias.name) == name]
    return ast.Import(aliases) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, aliases, 0)


def _names(node: ast.stmt) -> list[str]:
    """Names that are looked up when a statement runs, those of annotations left out."""
    reader = _Reader()
    reader.visit(node)
    return list(dict.fromkeys(reader.names))


class _Reader(ast.NodeVisitor):
    def __init__(self) -> None:
        self.names: list[str] = []

    def visit_Name(self, node: ast.Name) -> None:
        self.names.append(node.id)

    def visit_arg(self, node: ast.arg) -> None:
        """A parameter has an annotation and nothing else."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.decorator_list, node.args, *node.body):
            self.visit(part)
