"""No pruning: the model as it is, for timestep search alone."""

from typing import Any

from ..core.cut import Cut
from ..types import CutRequest

SOURCE = ""


def candidates(components: dict[str, Any], request: CutRequest) -> list[Cut]:
    """The whole model alone: nothing can go."""
    return [Cut("none")]


def apply(components: dict[str, Any], cut: Cut) -> dict[str, Any]:
    """Nothing to replace."""
    return {}


def words(components: dict[str, Any], cut: Cut | None) -> str:
    return "the whole model"
