"""No pruning: the model as it is, for timestep search alone."""

from typing import Any

SOURCE = ""


def levels(components: dict[str, Any]) -> int:
    """One level only: nothing can go."""
    return 1


def apply(components: dict[str, Any], depth: int) -> dict[str, Any]:
    return {}
