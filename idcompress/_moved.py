"""Modules that were renamed, still found under their former names, with a warning, so that older scripts run."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

# Former name -> present one; what lies below a package moved with it.
MOVED = {
    "idcompress.artifacts": "idcompress.runs",
    "idcompress.data": "idcompress.images",
    "idcompress.data.images": "idcompress.images.pictures",
    "idcompress.data.photographs": "idcompress.images.photo_sets",
    "idcompress.loading": "idcompress.sources.load",
}


def present_name(name: str) -> str | None:
    """The present name of a module that was renamed; None for any other."""
    former = max((old for old in MOVED if name == old or name.startswith(f"{old}.")), key=len, default=None)
    return None if former is None else MOVED[former] + name[len(former) :]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Hands out the present module where a former name is imported; the two are one and the same object."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if present_name(name) else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        present = present_name(spec.name)
        assert present is not None
        warnings.warn(f"{spec.name} is now {present}", DeprecationWarning, stacklevel=2)
        return importlib.import_module(present)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: the module has been imported. But the import system has put the former name's spec on it."""
        module.__spec__ = importlib.machinery.PathFinder.find_spec(
            module.__name__, importlib.import_module(module.__name__.rpartition(".")[0]).__path__
        )


def install() -> None:
    """Make the former names importable; once per process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # first, or the present module's folder would be searched for a second copy
