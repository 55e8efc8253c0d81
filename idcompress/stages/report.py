"""Make one page about a compression, as HTML and Markdown"""

from __future__ import annotations

from ..artifacts.recipe import Recipe
from ..artifacts.run_dir import RunDir
from ..config import Config


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    return []
