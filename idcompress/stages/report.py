"""Make one page about a compression, as HTML and Markdown"""

from __future__ import annotations

from pathlib import Path

from ..config import Config
from ..console import say
from ..errors import IdcError
from ..report import page
from ..report.collect import as_written, collect, find_evaluation
from ..runs import files
from ..runs.outputs import OutputFolder
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ._run import show


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Write report.html and report.md about an evaluation: the one beside this stage in a compress run, else
    report.path, else the newest. No recipe is made.

    Raises:
        IdcError: there is no evaluation to report on.
    """
    if _inside_compress(run_dir):
        evaluation = run_dir.path.parent / "evaluate"
        if not evaluation.is_dir():
            raise IdcError("compress.stages: report needs evaluate before it")
    else:
        evaluation = find_evaluation(config.report.path, config.task.name, run_dir.info["model"])
    say(f"reporting on {show(evaluation)}")
    place = Path(config.output.path) if config.output.path else run_dir.path
    folder = OutputFolder(place, run_dir, overwrite=config.output.overwrite)
    (stem,) = folder.choose(["report"], [".html", ".md"])
    with as_written(evaluation):
        blocks = page.compose(collect(evaluation, config.report.num_images))
        markdown, html = page.to_markdown(blocks).encode("utf-8"), page.to_html(blocks).encode("utf-8")
    beside = folder.write(stem, ".md", markdown)
    written = folder.write(stem, ".html", html)
    say(f"report: {show(written)} (and {beside.name} beside it)")
    return []


def _inside_compress(run_dir: RunDir) -> bool:
    above = run_dir.path.parent / "run.json"
    return above.is_file() and files.read_json(above, "run folder").get("stage") == "compress"
