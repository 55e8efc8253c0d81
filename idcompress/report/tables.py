"""Rows of the page's tables, from what an evaluation wrote."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .. import registry
from .collect import COSTS, SYSTEMS, Compression, Evaluation
from .figures import Picture, image_picture

Cell = str | Picture
MISSING = "-"
SPACE = "\N{NO-BREAK SPACE}"  # between a number and its unit
_EXACT = "equals its reference exactly"
_COST_LABELS = {
    "params": "parameters, in the files",
    "params_paper": "parameters, paper's rule: without time embedding",
    "weights_mb": "weights of the networks (MB)",
    "gmacs": "MACs of one network call, convolutions and linear layers (GMAC)",
    "gmacs_with_attention": "the same with attention products (GMAC)",
    "num_inference_steps": "steps",
    "network_calls": "calls of the networks per image, one for each guidance branch",
}
_TOTAL_LABELS = {
    "gmacs": "network calls \N{MULTIPLICATION SIGN} MACs, convolutions and linear layers (GMAC)",
    "gmacs_with_attention": "network calls \N{MULTIPLICATION SIGN} MACs, with attention products (GMAC)",
}
_KINDS = {"image": "input", "condition": "condition", "target": "true result"}
_BASELINE = "_mean_colour"  # ends the name of what a flat picture scores by a metric
_MODELS = {"original": "full model", "compressed": "compressed model"}
_SAMPLERS = {"ddim": "DDIM", "ancestral": "ancestral (DDIM with eta 1)", "dpm_solver": "DPM-Solver++ 2M"}
_WORST = 5  # images that are shown
_GRID_PX = 830  # of the page, for the images of a row
_PARTS = ("load", "encode", "denoise", "decode", "measure", "train")  # columns of the table of times, before the rest


@dataclass(frozen=True)
class Table:
    """A table of text and pictures.

    Attributes:
        header: one cell per column; in any cell, what follows a line break is secondary and shown smaller.
        rows: a row of a single cell is a heading inside the table.
        text_columns: the first columns, whose text is left-aligned; the others hold numbers or pictures.
        notes: lines below the table.
    """

    header: list[str]
    rows: list[list[Cell]]
    text_columns: int = 1
    notes: list[str] = field(default_factory=list)


def result_sentence(compression: Compression) -> str:
    """The outcome in one sentence."""
    first = compression.evaluations[0]
    if first.recipe.is_full and first.steps == first.original_steps:
        return f"The uncompressed model at {first.steps} uniform steps; nothing was compressed."
    clauses = []
    for evaluation in compression.evaluations:
        values = evaluation.values
        macs = values["gmacs"]["ratio"] * values["num_inference_steps"]["ratio"]
        costs = [(_share(macs), "the multiply-accumulates")]
        if "latency_ms" in values:
            costs.append((_share(values["latency_ms"]["ratio"]), "the time"))
        if evaluation is first:
            clause = f"at {evaluation.steps} steps instead of {evaluation.original_steps} it takes "
            clause += " and ".join(f"{share} of {what}" for share, what in costs) + " per image"
        else:
            clause = f"at {evaluation.steps} steps {' and '.join(share for share, _ in costs)}"
        name = next((n for n in quality_names(evaluation) if values[n]["compressed"] is not None), None)
        if name is not None:
            clause += f", with {name} {number(name, values[name], 'compressed', unit=True)}"
            if values[name]["uniform"] is not None and not compression.is_uniform(evaluation):
                verdict = values[name].get("compressed_minus_uniform", {}).get("verdict", "better")
                words = {"better": "", "worse": ", which is better", "no gain": ", no gain"}[verdict]
                clause += f" (uniform steps: {number(name, values[name], 'uniform', unit=True)}{words})"
        clauses.append(clause)
    share = _share(first.values["params"]["ratio"])
    return f"The compressed model ({depth_words(compression)}) keeps {share} of the parameters; {'; '.join(clauses)}."


def depth_words(compression: Compression) -> str:
    """ "depth 9 of 13", as far as it is known."""
    depth = compression.evaluations[0].recipe.depth
    search = compression.stage("depth_search")
    if depth is None:
        return "full depth"
    full = search.metrics.get("full_depth") if search else None
    return f"depth {depth} of {full}" if full else f"depth {depth}"


def summary(compression: Compression) -> Table:
    """Original against compressed and uniform at every step count: costs, then qualities."""
    evaluations = compression.evaluations
    original = evaluations[0]
    header = ["", f"original\n{original.original_steps} steps"]
    for evaluation in evaluations:
        header += [f"{system}\n{evaluation.steps} steps" for system in SYSTEMS[1:]]
    notes: list[str] = []

    rows: list[list[Cell]] = [["Cost"]]
    for name, label in _COST_LABELS.items():
        if name in original.values:
            rows.append([label, *_cost_cells([_costs(e, name) for e in evaluations])])
    calls = "network_calls" if "network_calls" in original.values else "num_inference_steps"
    for name, label in _TOTAL_LABELS.items():
        totals = [_products(_costs(e, name), _costs(e, calls)) for e in evaluations]
        rows.append([label, *_cost_cells(totals)])
    if "latency_ms" in original.values:
        rows.append(["latency end to end, as a ratio measured in one run", *_latency_cells(evaluations, "ratio")])
        if "denoising_ratio" in original.values["latency_ms"]:
            rows.append(["of it denoising alone, as a ratio", *_latency_cells(evaluations, "denoising_ratio")])
        notes += _latency_notes(evaluations)
    else:
        notes.append("Latency was not measured (evaluate.latency=false).")

    rows.append([f"Quality, mean over {original.metrics['num_images']} images [95 % bootstrap interval]"])
    for name in quality_names(original):
        rows.append([metric_label(name, original.values[name]), *_quality_cells(evaluations, name)])
        notes += [*_metric_notes(evaluations, name), *_baseline_notes(evaluations, name)]
    if any(compression.is_uniform(e) for e in evaluations):
        notes.append("Where the recipe's own timesteps are uniform, both columns show the same images.")
    notes.append(
        "Percentages are shares of the original. Uniform: the same pruned model at as many evenly spaced timesteps, "
        "so its costs are the same. ↑ higher is better, ↓ lower is better."
    )
    return Table(header, rows, notes=list(dict.fromkeys(notes)))


def alternatives(compression: Compression) -> Table | None:
    """Every compressed plan beside the plain ways to spend as much; None where none was run."""
    evaluations = [e for e in compression.evaluations if e.metrics.get("alternatives")]
    if not evaluations:
        return None
    first = evaluations[0]
    names = [n for n in quality_names(first) if any(_difference(r, n) for e in evaluations for r in e.alternatives)]
    rows: list[list[Cell]] = []
    for evaluation in evaluations:
        rows.append([f"{evaluation.steps} steps"])
        values = [number(n, evaluation.values[n], "compressed") for n in names]
        rows.append(["compressed", str(evaluation.steps), _share(1.0), *values])
        for row in evaluation.alternatives:
            label = f"{_MODELS[row['model']]}, uniform steps\n{_SAMPLERS[row['sampler']]}"
            rows.append([label, str(row["num_inference_steps"]), _share(row["gmacs_ratio"])])
            for name in names:
                metric, difference = evaluation.values[name], _difference(row, name)
                cell = _format(name, metric, row["metrics"][name]["value"])
                rows[-1].append(f"{cell}\n{_verdict(name, metric, difference)}" if difference else cell)
    notes = [
        "Below a value: what the compressed plan is against it, with its mean difference and 95 % paired bootstrap "
        "interval over the images; no gain where the interval holds zero. The full model gets as many steps as the "
        "compressed plan's multiply-accumulates pay for.",
        "Metrics that compare with the original's result favour plans that share its sampler.",
    ]
    return Table(["plan", "steps", "MACs", *(metric_label(n, first.values[n]) for n in names)], rows, notes=notes)


def samplers(compression: Compression) -> Table | None:
    """Original and compressed by every sampler that the task reports; None where it reports none."""
    first = compression.evaluations[0]
    if not first.metrics.get("samplers"):
        return None
    names = quality_names(first)
    rows: list[list[Cell]] = []
    plans = [(first, "original", first.original_steps)]
    plans += [(evaluation, "compressed", evaluation.steps) for evaluation in compression.evaluations]
    for evaluation, system, steps in plans:
        rows.append([f"{system}, {steps} steps"])
        for sampler, values in evaluation.metrics["samplers"].items():
            cells = [_format(name, first.values[name], values[name][system]) for name in names]
            rows.append([_SAMPLERS[sampler], *cells])
    note = "What is compared with the original's result is compared with that of the same sampler, with the same noise."
    return Table(["sampler", *(metric_label(name, first.values[name]) for name in names)], rows, notes=[note])


def gain_sentence(compression: Compression) -> str:
    """How many of the plain alternatives the compressed plans beat, by metric."""
    rows = [row for evaluation in compression.evaluations for row in evaluation.alternatives]
    parts = []
    for name in quality_names(compression.evaluations[0]):
        verdicts = [difference["verdict"] for row in rows if (difference := _difference(row, name))]
        if verdicts:
            beaten = verdicts.count("better")
            parts.append(f"{name} {beaten} of {len(rows)}" + ("" if beaten else ", no gain"))
    return f"Plain plans of the same cost that the compressed one beats: {'; '.join(parts) or 'none, no gain'}."


def _difference(row: dict[str, Any], name: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = row["metrics"].get(name, {}).get("compressed_minus_this")
    return found


def _verdict(name: str, metric: dict[str, Any], difference: dict[str, Any]) -> str:
    mean, low, high = (_format(name, metric, value) for value in (difference["mean"], *difference["interval"]))
    return f"{difference['verdict']}: {mean} [{low}, {high}]"


def metric_meanings(compression: Compression) -> list[str]:
    """What each quality is, from the metric's own file."""
    lines = []
    for name in quality_names(compression.evaluations[0]):
        row = compression.evaluations[0].values[name]
        what = f"{registry.summary('metric', name)}." if name in registry.names("metric") else ""
        compares = f"Compares {row['compares']}." if "compares" in row else ""
        if what or compares:
            lines.append(f"{name}: {what} {compares}".strip())
    return lines


def image_grid(compression: Compression) -> Table:
    """A few examples, all that was made of each side by side."""
    evaluations = compression.evaluations
    first = evaluations[0]
    many = f"{first.original_steps} steps"
    columns: list[tuple[str, Evaluation, str]] = [(label, first, kind) for kind, label in _KINDS.items()]
    columns += [(f"original\n{many}", first, "original"), (f"depth-skipped\n{many}", first, "depth_skipped")]
    for evaluation in evaluations:
        columns += [(f"{system}\n{evaluation.steps} steps", evaluation, system) for system in SYSTEMS[1:]]
    columns = [c for c in columns if any(c[1].image(c[2], name) for name in compression.examples)]
    width = min(160, max(100, _GRID_PX // len(columns)))
    prompts = {row["name"]: row["prompt"] for row in first.rows}
    rows: list[list[Cell]] = []
    for name in compression.examples:
        cells = [_image(evaluation, kind, name, label, width) for label, evaluation, kind in columns]
        rows.append([f"{prompts[name]}\n{name}", *cells])
    return Table(["prompt", *(label for label, _, _ in columns)], rows)


def times(compression: Compression) -> Table | None:
    """Where the wall time of every run went, by part; None where none is on record."""
    runs = [(f"idc {stage.name.replace('_', '-')}", stage.seconds) for stage in compression.stages]
    rows: list[list[Cell]] = []
    for command, seconds in [*runs, ("idc evaluate", compression.seconds)]:
        parts: dict[str, dict[str, float]] = {}
        for path, value in seconds.items():
            outer, _, last = path.rpartition("/")
            row, column = (outer, last) if last in _PARTS else ("" if path == "other" else path, "rest")
            parts.setdefault(row, {})[column] = parts.get(row, {}).get(column, 0.0) + value
        for row, found in sorted(parts.items()):
            cells = [f"{found[column]:.1f}" if column in found else "" for column in (*_PARTS, "rest")]
            rows.append([f"{command}: {row}" if row else command, *cells, f"{sum(found.values()):.1f}"])
        if len(parts) > 1:
            rows.append([f"{command}, all of it", *[""] * (len(_PARTS) + 1), f"{sum(seconds.values()):.1f}"])
    notes = ["Seconds of these runs on their machine; no latency, since what is cached is read and not computed."]
    return Table(["", *_PARTS, "rest", "sum"], rows, notes=notes) if rows else None


def worst_images(evaluation: Evaluation) -> Table | None:
    """The images that the compressed model does worst on by the first metric; None where no image has a value."""
    for name in quality_names(evaluation):
        metric = evaluation.values[name]
        rows = [row for row in evaluation.rows if row.get(f"{name}.compressed")]
        rows.sort(key=lambda r: float(r[f"{name}.compressed"]), reverse=not metric["higher_is_better"])
        if rows:
            break
    else:
        return None
    label = metric_label(name, metric)
    header = ["image", "prompt", f"{label}\ncompressed", f"{label}\nuniform", "original", "compressed"]
    cells: list[list[Cell]] = []
    for row in rows[:_WORST]:
        values = [_format(name, metric, row.get(f"{name}.{system}")) for system in SYSTEMS[1:]]
        images = [_image(evaluation, system, row["name"], system) for system in SYSTEMS[:2]]
        cells.append([row["name"], row["prompt"], *values, *images])
    return Table(header, cells, text_columns=2)


def by_instruction(compression: Compression) -> Table | None:
    """Success by instruction, over all images of the same tags; another metric's mean where success is unknown.

    None where the images have no tags or no values of their own.
    """
    evaluations = compression.evaluations
    first = evaluations[0]
    if not any(row["tags"] for row in first.rows):
        return None
    rates = [name for name in quality_names(first) if name.endswith("success_rate")]
    baselines = [f"{name}{_BASELINE}" for name in rates if f"{name}{_BASELINE}" in first.values]
    names = rates or [n for n in quality_names(first) if any(row.get(f"{n}.compressed") for row in first.rows)][:1]
    if not names:
        return None
    columns = [(f"original\n{first.original_steps} steps", first, "original", names)]
    for evaluation in evaluations:
        columns += [(f"{system}\n{evaluation.steps} steps", evaluation, system, names) for system in SYSTEMS[1:]]
    if baselines:
        columns.append(("mean colour\nof the input", first, "original", baselines))

    def row(label: str, tags: tuple[str, ...]) -> list[Cell]:
        """Means over the images whose tags begin with these."""
        cells: list[Cell] = [label, str(len(_tagged(first, tags)))]
        for _, evaluation, system, measured in columns:
            keys = [f"{name}.{system}" for name in measured]
            values = [float(r[key]) for r in _tagged(evaluation, tags) for key in keys if r.get(key)]
            cells.append(
                _group_cell(values, names[0], first.values[names[0]], counts=bool(rates), all_of=len(tags) == 1)
            )
        return cells

    tags = list(dict.fromkeys(tuple(r["tags"].split()) for r in first.rows if r["tags"]))
    rows: list[list[Cell]] = []
    for group in dict.fromkeys(words[:1] for words in tags):
        rows.append(row(f"all {group[0]}", group))
        members = [words for words in tags if words[:1] == group and words != group]
        rows += [row(f"{group[0]}: {' '.join(words[1:]).replace('_', ' ')}", words) for words in members]
    what = "Share of images that succeed" if rates else f"Mean {metric_label(names[0], first.values[names[0]])}"
    notes = [f"{what}, by instruction ({', '.join(names)})."]
    if baselines:
        notes.append("Mean colour: what a flat picture scores by the same criterion; success means what lies above it.")
    return Table(["instruction", "images", *(label for label, *_ in columns)], rows, notes=notes)


def _tagged(evaluation: Evaluation, tags: tuple[str, ...]) -> list[dict[str, str]]:
    return [row for row in evaluation.rows if tuple(row["tags"].split())[: len(tags)] == tags]


def quality_names(evaluation: Evaluation) -> list[str]:
    """The image metrics of an evaluation, in its order."""
    return [name for name in evaluation.values if name not in COSTS]


def metric_label(name: str, row: dict[str, Any]) -> str:
    """A metric's name with its direction and unit."""
    unit = f" ({row['unit']})" if row["unit"] else ""
    return f"{name} {'↑' if row['higher_is_better'] else '↓'}{unit}"


def number(name: str, row: dict[str, Any], system: str, *, unit: bool = False) -> str:
    """One system's value of a metric."""
    if _is_exact(row, system):
        return "exact"
    return _format(name, row, row[system]) + (f"{SPACE}{row['unit']}" if unit and row["unit"] else "")


def _format(name: str, row: dict[str, Any], value: float | str | None) -> str:
    if value is None or value == "":
        return MISSING
    value = float(value)
    if name.removesuffix(_BASELINE).endswith("_rate"):
        return f"{100 * value:.0f}{SPACE}%"
    return f"{value:.2f}" if row["unit"] == "dB" or abs(value) >= 100 else f"{value:.4f}"


def _is_exact(row: dict[str, Any], system: str) -> bool:
    """Whether a missing value stands for images that all equal their references."""
    return row[system] is None and _EXACT in row.get("notes", {}).get(system, "")


def _group_cell(values: list[float], name: str, row: dict[str, Any], *, counts: bool, all_of: bool) -> str:
    """A mean; of successes the count, and for a whole group of instructions both."""
    if not values:
        return MISSING
    mean, count = _format(name, row, sum(values) / len(values)), f"{sum(values):.0f} of {len(values)}"
    if not counts:
        return mean
    return f"{mean}\n{count}" if all_of else count


def _share(ratio: float) -> str:
    return f"{100 * ratio:.3g}{SPACE}%"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 10_000 else f"{value:.4g}"


def _costs(evaluation: Evaluation, name: str) -> dict[str, float]:
    """A cost by system."""
    return {system: float(evaluation.values[name][system]) for system in SYSTEMS}


def _products(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {system: a[system] * b[system] for system in SYSTEMS}


def _cost_cells(costs: list[dict[str, float]]) -> list[Cell]:
    """The original's cost, then every step count's compressed and uniform one with its share of the original's."""
    base = costs[0]["original"]
    cells: list[Cell] = [_amount(base)]
    for cost in costs:
        cells += [f"{_amount(cost[system])}\n{_share(cost[system] / base)}" for system in SYSTEMS[1:]]
    return cells


def _latency_cells(evaluations: list[Evaluation], name: str) -> list[Cell]:
    cells: list[Cell] = ["1"]
    for evaluation in evaluations:
        row = evaluation.values["latency_ms"]
        low, high = row["ratio_quartiles"]
        quartiles = f"\nquartiles {low:.3g} to {high:.3g}" if name == "ratio" else ""
        cells += [f"{row[name]:.3g}{quartiles}", "the same"]
    return cells


def _latency_notes(evaluations: list[Evaluation]) -> list[str]:
    """How it was measured, what its stages took, and milliseconds where the networks are wide enough for them."""
    found = [(evaluation, evaluation.values["latency_ms"]) for evaluation in evaluations]
    notes = ["Latency: original and compressed took turns in one run; median of the pairs' ratios."]
    for evaluation, row in found:
        stages = {
            system: ", ".join(f"{name} {_share(share)}" for name, share in shares.items())
            for system, shares in row.get("stages", {}).items()
        }
        if stages:
            notes.append(
                f"Stages in the original's time: original {stages['original']}; compressed at {evaluation.steps} steps "
                f"{stages['compressed']}."
            )
    medians = [
        f"{row['compressed']:.4g} ms against {row['original']:.4g} ms at {evaluation.steps} steps"
        for evaluation, row in found
        if row["original"] is not None
    ]
    told = f"Medians on this machine, {found[0][1]['unit'].removeprefix('ms ')}: {'; '.join(medians)}."
    return [*notes, told if medians else "Narrower than Stable Diffusion, so no milliseconds are told."]


def _quality_cells(evaluations: list[Evaluation], name: str) -> list[Cell]:
    cells: list[Cell] = [number(name, evaluations[0].values[name], "original")]
    for evaluation in evaluations:
        row = evaluation.values[name]
        value = number(name, row, "compressed")
        if row["interval"] and None not in row["interval"]:
            low, high = (_format(name, row, bound) for bound in row["interval"])
            value += f"\n[{low}, {high}]"
        cells += [value, number(name, row, "uniform")]
        difference = row.get("compressed_minus_uniform")
        if difference:
            cells[-1] = f"{cells[-1]}\ncompressed {_verdict(name, row, difference)}"
    return cells


def _metric_notes(evaluations: list[Evaluation], name: str) -> list[str]:
    """Why a value is missing, once per system where all step counts agree."""
    notes = []
    for evaluation in evaluations:
        for system, note in evaluation.values[name].get("notes", {}).items():
            perfect = _is_exact(evaluation.values[name], system)
            steps = evaluation.original_steps if system == "original" else evaluation.steps
            notes.append(f"{name}, {system} at {steps} steps: {note}{': perfect by definition' if perfect else ''}.")
    return notes


def _baseline_notes(evaluations: list[Evaluation], name: str) -> list[str]:
    """Where a value is no better than a flat picture's."""
    notes = []
    for evaluation in evaluations:
        flat = evaluation.values.get(f"{name}{_BASELINE}", {}).get("original")
        for system in SYSTEMS[:2]:
            value = evaluation.values[name][system]
            if flat is not None and value is not None and value <= flat:
                steps = evaluation.original_steps if system == "original" else evaluation.steps
                notes.append(
                    f"{name}, {system} at {steps} steps: not above what the input's mean colour, painted everywhere, "
                    "scores; it shows no skill."
                )
    return notes


def _image(evaluation: Evaluation, kind: str, name: str, label: str, width: int = 96) -> Cell:
    path = evaluation.image(kind, name)
    return MISSING if path is None else image_picture(path, f"{name}: {label.replace(chr(10), ', ')}", width)
