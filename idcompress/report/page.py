"""The page: one list of blocks, written as HTML and as Markdown, both with every picture inside."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import registry
from ..runs.recipe import Recipe
from . import figures, finetuning, plans
from .cite import citations
from .collect import Compression, Stage
from .figures import Picture
from .tables import alternatives, images, instructions, qualities, samplers, summary, times, values
from .tables.table import MISSING, Cell, Table

TITLE, SECTION, PART = 1, 2, 3


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = SECTION


@dataclass(frozen=True)
class Text:
    """A paragraph; `lead` for the one that gives the result."""

    text: str
    lead: bool = False


@dataclass(frozen=True)
class Items:
    """A list of short lines."""

    lines: list[str]


@dataclass(frozen=True)
class Listing:
    """Text to copy, as it is."""

    text: str


Block = Heading | Text | Items | Listing | Table | Picture


def compose(compression: Compression) -> list[Block]:
    """The page's blocks, in order; what cannot be shown is said in a line in its place."""
    blocks: list[Block] = [
        Heading(f"{task_words(compression.task)}, model {compression.model}: compression report", TITLE),
        Text(summary.sentence(compression), lead=True),
        *_headline(compression),
        Heading("Images"),
        images.grid(compression),
        Heading("Original against compressed"),
        summary.table(compression),
        *_alternatives(compression),
        *_samplers(compression),
        *_plan(compression),
        *_depth(compression),
        *_finetuning(compression),
        *_gamma(compression),
        *_timesteps(compression),
    ]
    success = instructions.table(compression)
    if success is not None:
        blocks += [Heading("By instruction"), success]
    worst = [(e, images.worst(e)) for e in compression.evaluations]
    if any(table for _, table in worst):
        blocks += [Heading("Worst images")]
    for evaluation, table in worst:
        if table is not None:
            blocks += [Heading(f"{evaluation.steps} steps", PART), table]
    blocks += [Heading("What was run, and on what"), *_provenance(compression)]
    spent = times.table(compression)
    if spent is not None:
        blocks += [Heading("Where the time went"), spent]
    meanings = qualities.meanings(compression)
    if meanings:
        blocks += [Heading("What the metrics say"), Items(meanings)]
    sampler = str(compression.evaluations[0].metrics.get("sampler", "ddim"))
    blocks += [Heading("Citations"), Listing("\n\n".join(citations(compression.task, sampler, compression.strategy)))]
    return blocks


def _headline(compression: Compression) -> list[Block]:
    """Quality over work by the first metric that every compressed plan has a number of."""
    first = compression.evaluations[0]
    for name in values.quality_names(first):
        if all(e.values[name]["compressed"] is not None for e in compression.evaluations):
            label = values.metric_label(name, first.values[name])
            return [figures.headline(compression, name, label)]
    return []


def _alternatives(compression: Compression) -> list[Block]:
    table = alternatives.table(compression)
    if table is None:
        return []
    return [Heading("Against plain ways to spend as much"), Text(alternatives.sentence(compression)), table]


def _plan(compression: Compression) -> list[Block]:
    """What is computed at every step of searched plans, and what they were certified to be worth."""
    blocks: list[Block] = []
    for evaluation in compression.evaluations:
        recipe = evaluation.recipe
        entry = recipe.provenance[-1] if recipe.provenance else {}
        if entry.get("stage") != "plan" or recipe.plan is None:
            continue
        share = f"{100 * entry['macs_ratio']:.3g} % of the full model's work" if "macs_ratio" in entry else ""
        blocks += [Heading(f"Plan of {evaluation.steps} steps, {share}")]
        blocks += [plans.steps_table(recipe.plan.to_json(), recipe.depth)]
        certificate = entry.get("certificate")
        if certificate is None:
            blocks += [Text("The search has certified nothing: no photograph was left, or plan.num_certified was 0.")]
        else:
            blocks += [Text(certificate["sentence"]), plans.table(certificate)]
    search = compression.stage("plan")
    drawn = plans.charts(search.metrics.get("plans", [])) if search and blocks else []
    if drawn:
        blocks += [Heading("Quality over work"), figures.charts(drawn, plans.ALT)[0]]
    return blocks


def _samplers(compression: Compression) -> list[Block]:
    table = samplers.table(compression)
    return [] if table is None else [Heading("Deterministic and stochastic sampling"), table]


def task_words(task: str) -> str:
    """A task's name as its own file spells it, before the colon of its first line."""
    if task not in registry.names("task"):
        return task
    return f"{registry.summary('task', task).partition(':')[0]} ({task})"


def _depth(compression: Compression) -> list[Block]:
    blocks: list[Block] = [Heading("Depth")]
    search = compression.stage("depth_search")
    if search is None:
        recipe = compression.evaluations[0].recipe
        why = f"{_given(recipe)}, not searched" if recipe.cut else "No depth search: the U-Net is whole"
        return [*blocks, Text(f"{why}, so there is no curve over depth.")]
    if search.folder is None:
        return [*blocks, Text(_gone(search))]
    if not search.trace:
        given = _given(compression.evaluations[0].recipe)
        return [*blocks, Text(f"{given}, not searched, so there is no curve over depth.")]
    if "depth" not in search.trace[0]:
        probed = len(search.trace)
        return [*blocks, Text(f"{probed} cuts were probed that are no depths, so there is no curve over depth.")]
    metrics = search.metrics
    units = {name: row["unit"] for name, row in compression.evaluations[0].values.items()}
    rows = sorted(search.trace, key=lambda row: -int(row["depth"]))
    text = f"Quality of every probed depth over {_images(metrics['num_images'])} that the search may see; "
    text += f"the search takes the smallest depth before the first that misses a threshold: {metrics['depth']}."
    if metrics["depth"] == metrics["full_depth"]:
        text += " No level could go."
    blocks += [Text(text), figures.depth_curve(search, units, finetuning.tuned_point(compression))]
    lines = []
    few = [row for row in rows if row.get("num_skipped")]
    if few:
        judged = ", ".join(f"{row['depth']} on {row['num_images']}" for row in few)
        lines.append(f"Depths that were judged on fewer images, which left no doubt about the others: {judged}.")
    if rows[-1]["depth"] > 1:
        how = "a lower depth_search.min_depth" if rows[-1]["passed"] else "depth_search.whole_curve=true"
        lines.append(f"Only depths {rows[0]['depth']} to {rows[-1]['depth']} were probed; {how} goes on below.")
    for row in rows:
        lines += [f"Depth {row['depth']}, {name}: {note}, so it has no point." for name, note in row["notes"].items()]
    return [*blocks, *([Items(lines)] if lines else [])]


def _given(recipe: Recipe) -> str:
    return f"The depth was given ({recipe.depth})" if recipe.depth else f"The cut was given ({recipe.kept})"


def _finetuning(compression: Compression) -> list[Block]:
    stage = compression.stage("finetune")
    if stage is None:
        return []
    if stage.folder is None or "judged" not in stage.metrics:
        return [Heading("Fine-tuning"), Text(_gone(stage))]
    text, parts = finetuning.section(compression, stage)
    return [Heading("Fine-tuning"), Text(text), *parts]


def _gamma(compression: Compression) -> list[Block]:
    blocks: list[Block] = [Heading("PSNR over gamma")]
    search = compression.stage("tsopt")
    if search is None:
        return [*blocks, Text("No timestep search was run, so there is no curve over gamma.")]
    if search.folder is None:
        return [*blocks, Text(_gone(search))]
    picture = figures.gamma_curves(search)
    if picture is None:
        return [*blocks, Text(f"The strategy {search.entry['strategy']} searched no gamma, so there is no curve.")]
    whose = "this pruned model's own result" if search.metrics["reference"] == "self" else "the full model's result"
    text = f"Every gamma that the search sampled, by PSNR to {whose} at {search.metrics['reference_steps']} uniform "
    text += f"steps over {_images(search.metrics['num_images'])}. Gamma 1 is uniform; less than 1 crowds the noisy end."
    return [*blocks, Text(text), picture]


def _timesteps(compression: Compression) -> list[Block]:
    rows: list[list[Cell]] = []
    search = compression.stage("tsopt")
    for evaluation in compression.evaluations:
        uniform = compression.uniform_timesteps(evaluation.steps)
        searched = not compression.is_uniform(evaluation)
        listed = ", ".join(map(str, evaluation.timesteps))
        rows.append([f"{evaluation.steps} steps, {compression.strategy if searched else 'uniform'}", listed])
        if searched:
            text = MISSING if uniform is None else ", ".join(map(str, uniform))
            if uniform is None and (search is None or search.folder is None):
                text = "not on record: the run that made the recipe is gone"
            rows.append([f"{evaluation.steps} steps, uniform", text])
    table = Table(["", "timesteps, in sampling order"], rows, text_columns=2)
    return [Heading("Timesteps against uniform"), figures.timestep_rugs(compression), table]


def _gone(stage: Stage) -> str:
    digest = str(stage.entry["config_digest"])[:12]
    return f"The run of {_command(stage.name)} that made this recipe (configuration {digest}) is no longer there."


def _provenance(compression: Compression) -> list[Block]:
    first = compression.evaluations[0]
    metrics, recipe, config = first.metrics, first.recipe, compression.config
    runs: list[list[Cell]] = []
    for stage in compression.stages:
        folder = "gone" if stage.folder is None else _show(stage.folder)
        digest, seed = str(stage.entry["config_digest"])[:12], str(stage.entry.get("seed", MISSING))
        runs.append([_command(stage.name), folder, digest, seed, str(stage.entry.get("code", MISSING))])
    info = compression.run_info
    evaluated = [_command("evaluate"), _show(compression.folder), str(info.get("digest", MISSING))[:12]]
    runs.append([*evaluated, str(config.get("seed", MISSING)), MISSING])

    source = recipe.model
    where = source.get("path") or source.get("repositories") or "embedded"
    if source.get("revision"):
        where = f"{where}, revision {source['revision']}"
    guidance = ", ".join(f"{name} {scale:g}" for name, scale in metrics["guidance"].items())
    searched = sorted({name for stage in compression.stages for name in stage.entry.get("photographs", {})})
    environment = compression.environment
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    machine = [f"{name.replace('_', ' ')} {value}" for name, value in environment.items() if name != "packages"]
    facts: list[tuple[str, Any]] = [
        ("task", task_words(compression.task)),
        ("model", f"{compression.model}: {where}"),
        ("weights (digest)", source.get("digest")),
        ("original", f"{first.original_steps} uniform steps, full depth"),
        ("compressed", summary.depth_words(compression) + (f" by {recipe.cut.method}" if recipe.cut else "")),
        ("recipes", ", ".join(f"{e.steps} steps: {e.recipe.digest[:12]}" for e in compression.evaluations)),
        ("sampler", metrics.get("sampler", config.get("sampler"))),
        ("guidance", guidance),
        ("data", metrics["data"]),
        ("images evaluated", metrics["num_images"]),
        ("their photographs that a search had seen", metrics.get("num_photographs_seen")),
        ("data split", f"{config['data']['split']} (data.split)" if "data" in config else None),
        ("photographs that the searches used", f"{len(searched)}: {', '.join(searched)}" if searched else "none"),
        ("device", metrics.get("device") or config.get("device")),
        ("dtype", config.get("dtype")),
        ("machine", ", ".join(machine)),
        ("packages", packages),
    ]
    rows: list[list[Cell]] = [[name, str(value)] for name, value in facts if value not in (None, "")]
    blocks: list[Block] = [
        Table(["command", "run folder", "configuration", "seed", "code"], runs, text_columns=2),
        Table(["", ""], rows, text_columns=2),
    ]
    if compression.warnings:
        blocks += [Heading("Warnings of the run", PART), Items(compression.warnings)]
    return blocks


def _command(stage: str) -> str:
    return f"idc {stage.replace('_', '-')}"


def _images(number: int) -> str:
    return f"{number} image{'' if number == 1 else 's'}"


def _show(path: Path) -> str:
    """A path as the user would type it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# HTML ----------------------------------------------------------------------------------------------------------------

_CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1b1e23; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .7rem; padding-top: 1.1rem; border-top: 1px solid #e4e6ea; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .5rem 0; max-width: 76ch; }
.lead { font-size: 1.12rem; color: #30353d; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .86rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid #e9ebee; }
th { font-weight: 600; vertical-align: bottom; border-bottom: 1.5px solid #b9bec6; }
td { white-space: nowrap; }
.text { text-align: left; white-space: normal; }
td.text { min-width: 7rem; overflow-wrap: anywhere; }
td.text:first-child { min-width: 11rem; }
small { color: #666d78; font-size: .92em; font-weight: 400; }
tr.group td { text-align: left; font-weight: 600; padding-top: 1rem; background: none; }
tbody tr:last-child td { border-bottom: 0; }
.pictures th, .pictures td { padding: .25rem; text-align: center; white-space: normal; }
.pictures .text { text-align: left; padding-right: .7rem; }
.pictures td { vertical-align: middle; }
td img { display: block; height: auto; margin: 0 auto; border-radius: 3px; }
img.figure { display: block; width: 100%; max-width: 840px; height: auto; margin: .8rem 0; }
.pixelated { image-rendering: pixelated; }
ul { margin: .5rem 0; padding-left: 1.2rem; max-width: 90ch; font-size: .9rem; color: #434a54; }
pre { background: #f6f7f9; border-radius: 6px; padding: 1rem; overflow-x: auto; font-size: .8rem; line-height: 1.45; }
@media print { h2 { break-after: avoid; } tr { break-inside: avoid; } main { padding: 0; } }
"""
# Even a page that was tampered with could fetch nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def to_html(blocks: list[Block]) -> str:
    """A page that needs nothing but itself."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    body = "\n".join(_html(block) for block in blocks)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_CSS}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
        case Text():
            return f"<p{_class('lead' if block.lead else '')}>{html.escape(block.text)}</p>"
        case Items():
            return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in block.lines) + "</ul>"
        case Listing():
            return f"<pre>{html.escape(block.text)}</pre>"
        case Picture():
            return _html_picture(block, "figure")
        case Table():
            return _html_table(block)


def _html_picture(picture: Picture, name: str = "") -> str:
    classes = f"{name} {'pixelated' if picture.pixelated else ''}".strip()
    return f'<img{_class(classes)} alt="{html.escape(picture.alt)}" width="{picture.width}" src="{picture.uri}">'


def _html_table(table: Table) -> str:
    pictures = any(isinstance(cell, Picture) for row in table.rows for cell in row)
    lines = [f'<div class="wide"><table{_class("pictures" if pictures else "")}>']
    if any(table.header):
        cells = (_html_cell(cell, "th", place < table.text_columns) for place, cell in enumerate(table.header))
        lines.append(f"<thead><tr>{''.join(cells)}</tr></thead>")
    lines.append("<tbody>")
    for row in table.rows:
        if len(row) == 1:
            lines.append(f'<tr class="group"><td colspan="{len(table.header)}">{html.escape(str(row[0]))}</td></tr>')
            continue
        cells = (_html_cell(cell, "td", place < table.text_columns) for place, cell in enumerate(row))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines.append("</tbody></table></div>")
    if table.notes:
        lines.append(_html(Items(table.notes)))
    return "\n".join(lines)


def _html_cell(cell: Cell, tag: str, text: bool) -> str:
    if isinstance(cell, Picture):
        content = _html_picture(cell)
    else:
        main, _, secondary = cell.partition("\n")
        content = html.escape(main) + (f"<br><small>{html.escape(secondary)}</small>" if secondary else "")
    return f"<{tag}{_class('text' if text else '')}>{content}</{tag}>"


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


# Markdown ------------------------------------------------------------------------------------------------------------


def to_markdown(blocks: list[Block]) -> str:
    """The same page as Markdown with tables; pictures keep their size by HTML's img."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {_escape(block.text)}"
        case Text():
            return f"**{_escape(block.text)}**" if block.lead else _escape(block.text)
        case Items():
            return "\n".join(f"- {_escape(line)}" for line in block.lines)
        case Listing():
            return f"```bibtex\n{block.text}\n```"
        case Picture():
            return _html_picture(block)
        case Table():
            return _markdown_table(block)


def _markdown_table(table: Table) -> str:
    width = len(table.header)
    lines = [_markdown_row(list[Cell](table.header), width)]
    lines.append("|" + "|".join(" :-- " if place < table.text_columns else " --: " for place in range(width)) + "|")
    for row in table.rows:
        lines.append(_markdown_row([f"**{row[0]}**"] if len(row) == 1 else row, width))
    text = "\n".join(lines)
    return f"{text}\n\n{_markdown(Items(table.notes))}" if table.notes else text


def _markdown_row(cells: list[Cell], width: int) -> str:
    texts = [_html_picture(c) if isinstance(c, Picture) else _markdown_text(c) for c in cells]
    return "| " + " | ".join([*texts, *[""] * (width - len(texts))]) + " |"


def _markdown_text(cell: str) -> str:
    if cell.startswith("**"):
        return f"**{_escape(cell.strip('*'))}**"
    return "<br>".join(_escape(part) for part in cell.split("\n"))


def _escape(text: str) -> str:
    """Text whose characters Markdown would take for its own."""
    text = html.escape(text, quote=False)
    for character in "\\`*|":
        text = text.replace(character, f"\\{character}")
    return text.replace("](", "]\\(").replace("\n", " ")
