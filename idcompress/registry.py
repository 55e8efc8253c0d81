"""Kind + name -> module: the file stem is the registered name, and looking a name up imports that file."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

from .errors import IdcError, did_you_mean, shown

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = {
    "command": "stages",
    "task": "tasks",
    "prune": "pruning",
    "sampler": "samplers",
    "timesteps": "timesteps",
    "metric": "metrics",
    "data": "datasets",
    "study": "studies",
}


def names(kind: str) -> list[str]:
    """Every registered name of a kind, which is a key of _FOLDERS."""
    return sorted(p.stem for p in (_PACKAGE / _FOLDERS[kind]).glob("*.py") if not p.stem.startswith("_"))


def load(kind: str, name: str, key: str = "") -> ModuleType:
    """Import the file behind a name.

    Args:
        key: the configuration key that the name came from, for the error.

    Raises:
        LookupError: no such name; the message gives the nearest one. It is an IdcError too.
    """
    check(kind, name, key)
    return importlib.import_module(f"idcompress.{_FOLDERS[kind]}.{name}")


def check(kind: str, name: str, key: str = "") -> None:
    """Raise as `load` does, without importing anything."""
    if name not in names(kind):
        where = f" ({key})" if key else ""
        raise UnknownNameError(f"no {kind} is called {shown(name)}{where}{did_you_mean(name, names(kind))}")


class UnknownNameError(IdcError, LookupError):
    """A name that the registry does not hold."""


def summary(kind: str, name: str) -> str:
    """The first line of a file's docstring, without importing it."""
    return (ast.get_docstring(_parsed(kind, name)) or "").partition("\n")[0].rstrip(".")


def literal(kind: str, name: str, constant: str) -> Any:
    """The value that a file gives to a constant of its module, without importing it; None where it gives none.

    Raises:
        ValueError: the value is no literal.
    """
    for node in _parsed(kind, name).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [constant]:
            return ast.literal_eval(node.value)
    return None


def _parsed(kind: str, name: str) -> ast.Module:
    return ast.parse((_PACKAGE / _FOLDERS[kind] / f"{name}.py").read_text(encoding="utf-8"))


def bind(function: Any, parameters: dict[str, Any], key: str) -> dict[str, Any]:
    """Check configured parameters against a function's keyword-only ones; all faults in one error.

    Args:
        parameters: what the configuration holds under `key`, without `name`.

    Raises:
        IdcError: unknown parameters, values of another type than the defaults', outside a Literal annotation, or not
            a list as a list annotation wants it.
    """
    known = {
        n: p for n, p in inspect.signature(function).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    faults = []
    for name, value in parameters.items():
        if name not in known:
            faults.append(f"unknown key {key}.{name}{did_you_mean(name, known)}")
            continue
        default, annotation = known[name].default, known[name].annotation
        origin, choices = get_origin(annotation), get_args(annotation)
        if origin is list:
            types = (int, float) if choices[0] is float else choices
            if not isinstance(value, list) or not value or any(type(item) not in types for item in value):
                faults.append(f"{key}.{name} must be a list of {choices[0].__name__}, got {value!r}")
            continue
        if origin is Literal:
            if value not in choices:
                faults.append(f"{key}.{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
            continue
        wanted = (int, float) if isinstance(default, float) else type(default)
        plain = default is None or default is inspect.Parameter.empty
        if not plain and (not isinstance(value, wanted) or isinstance(value, bool) != isinstance(default, bool)):
            faults.append(f"{key}.{name} must be {type(default).__name__}, got {value!r}")
    if faults:
        raise IdcError("; ".join(faults))
    return parameters
