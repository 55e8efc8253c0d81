"""Models that diffusers does not have (stablesr), embedded ones (tiny), and the shapes of published ones (official)."""

from typing import Any


def pipeline_class_named(name: str) -> Any:
    """A pipeline class by its name: one of diffusers', or one of ours.

    Raises:
        AttributeError: there is none.
    """
    import diffusers

    if hasattr(diffusers, name):
        return getattr(diffusers, name)
    from . import stablesr

    return getattr(stablesr, name)
