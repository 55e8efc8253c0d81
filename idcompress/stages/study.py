"""Repeat one of the paper's studies: a table, a figure and the answer in a sentence"""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import registry
from ..config import Config
from ..console import say
from ..errors import IdcError
from ..report import page
from ..report import study as report
from ..report.figures import charts
from ..runs import files
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..types import Study
from ._run import code_state, show, with_depth
from ._values import data_of


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Run idcompress/studies/<study.name>.py; no recipe is made.

    Writes trace.jsonl (a row per sampled plan), study.json, study.csv, study.png, study.svg, report.html, report.md.

    Raises:
        IdcError: no such study, or parameters that it cannot have.
    """
    name = config.study["name"]
    entry = registry.load("study", name, "study")
    parameters = {key: value for key, value in config.study.items() if key != "name"}
    _check_counts(registry.bind(entry.run, parameters, "study"))
    recipe = with_depth(recipes[0], config)
    found: Study = entry.run(config, recipe, run_dir, **parameters)

    title = registry.summary("study", name)
    picture, drawing = charts(found.charts, title)
    facts = _facts(config, recipe, name, entry.SOURCE, parameters)
    value = {"version": 1, "study": name, "title": title, "facts": facts, **dataclasses.asdict(found)}
    files.write_json(run_dir / "study.json", value)
    files.write_text(run_dir / "study.csv", report.to_csv(found))
    files.write_bytes(run_dir / "study.png", picture.data)
    files.write_text(run_dir / "study.svg", drawing)
    blocks = report.compose(f"{page.task_words(config.task.name)}: {title}", found, picture, facts)
    files.write_text(run_dir / "report.md", page.to_markdown(blocks))
    written = files.write_text(run_dir / "report.html", page.to_html(blocks))
    say(report.to_text(found))
    say(found.outcome)
    for note in found.notes:
        say(f"  {note}")
    say(f"report: {show(written)} (and report.md beside it)")
    return []


def _check_counts(parameters: dict[str, Any]) -> None:
    """Whole numbers of a study are numbers of images, steps or levels."""
    for key, value in parameters.items():
        for count in value if isinstance(value, list) else [value]:
            if type(count) is int and not 1 <= count <= (1000 if key.endswith("_steps") else count):
                raise IdcError(
                    f"study.{key} must be at least 1{', at most 1000' * key.endswith('_steps')}, got {count}"
                )


def _facts(config: Config, recipe: Recipe, name: str, source: str, parameters: dict[str, Any]) -> dict[str, str]:
    """What the numbers are from, in words."""
    facts = {
        "study": name,
        "after": source,
        "task": page.task_words(config.task.name),
        "model": f"{config.model.name}: {recipe.model.get('path') or recipe.model.get('repositories') or 'embedded'}",
        "depth": f"{recipe.depth}, of the recipe or given" if recipe.depth else "full, where the table names no other",
        "data": data_of(config).label,
        "parameters": ", ".join(f"study.{key}={value}" for key, value in parameters.items()),
        "sampler": f"{config.sampler}, where the table names no other",
        "guidance": ", ".join(f"{key} {scale:g}" for key, scale in config.guidance().items()) or "none",
        "seed": str(config.seed),
        "code": code_state(),
    }
    if config.model.name == "tiny":
        facts["model"] += "; small and shortly trained: trends, not promises for the published model"
    return facts
