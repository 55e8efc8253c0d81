"""idcompress: make an image-to-image diffusion model small and fast for the task it does.

The public names below are imported on first use, so `import idcompress` loads neither torch nor diffusers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import _moved

__version__ = "0.1.0"

_PUBLIC = {
    "Recipe": "idcompress.runs.recipe",
    "ddim_sample": "idcompress.core.ddim",
    "depth_skip": "idcompress.adapters.unet",
    "full_depth": "idcompress.adapters.unet",
    "gamma_timesteps": "idcompress.core.timestep_search",
    "load_pipeline": "idcompress.sources.load",
}
_SUBMODULES = ("schedulers",)

__all__ = ["Recipe", "__version__", "ddim_sample", "depth_skip", "full_depth", "gamma_timesteps", "load_pipeline"]

if TYPE_CHECKING:
    from .adapters.unet import depth_skip, full_depth
    from .core.ddim import ddim_sample
    from .core.timestep_search import gamma_timesteps
    from .runs.recipe import Recipe
    from .sources.load import load_pipeline


_moved.install()


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC, *_SUBMODULES])
