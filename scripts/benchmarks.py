"""The tables of README.md and docs/benchmarks.md, from the stored results in docs/results.

    python -m scripts.benchmarks    # renew every table in place; the same as `make benchmarks`

`scripts.results` measures the results. A table stands between `<!-- result NAME TABLE -->` and `<!-- end -->`. A result
is a JSON file: `command`, `commit`, `date`, `machine`, `seed`, an optional `note` that goes under its tables, and
`values`: by table a list of rows, each a mapping from the column's title to its cell, or a list of console lines.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
BLOCK = re.compile(r"(<!-- result (?P<name>\w+) (?P<table>\w+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
SOURCE = ("command", "commit", "date", "machine", "seed")

Row = Mapping[str, Any]


def read(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """A stored result.

    Raises:
        ValueError: it does not say where its numbers come from.
    """
    result: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    if "cells" in result:
        result["values"] = latency(result)
    missing = [key for key in (*SOURCE, "values") if key not in result]
    if missing:
        raise ValueError(f"docs/results/{name}.json lacks {', '.join(missing)}")
    return result


def renewed(text: str, folder: Path = RESULTS) -> str:
    """A document with every table as its result has it."""

    def block(match: re.Match[str]) -> str:
        return match[1] + rendered(read(match["name"], folder), match["table"]) + match[5]

    return BLOCK.sub(block, text)


def rendered(result: Row, table: str) -> str:
    """A table in Markdown, or console lines, and under it where it comes from."""
    rows = result["values"][table]
    if isinstance(rows[0], str):
        return "\n".join(["```text", *rows, "```", ""])
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in rows]
    note = f" {result['note']}" if result.get("note") else ""
    source = f"commit {result['commit']}, {result['date']}, {result['machine']}, seed {result['seed']}"
    return "\n".join([*lines, "", f"*`{result['command']}`; {source}.{note}*", ""])


def cell(value: Any) -> str:
    """A number with three significant digits, a difference with its interval, text as it is."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        if not value:
            return "no difference"
        return f"{cell(value['mean'])} [{cell(value['interval'][0])}, {cell(value['interval'][1])}]"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


# --- results of a run -------------------------------------------------------------------------------------------------

LABELS = {
    "psnr": "PSNR to the original's result, dB",
    "edit_psnr": "PSNR to the true edit, dB",
    "edit_retrieval": "easy edits found",
    "hard_edit_retrieval": "hard edits found",
    "target_psnr": "PSNR to the truth, dB",
    "canny_f1": "canny F1",
    "canny_f1_shuffled": "(another photograph's edges)",
}
_SHOWN = re.compile(r"[-\d]+ [:,\d]+ INFO ((==|  depth +\d|  step|depth|\d+ steps:|  plain:).*)")


def of_plans(run: Path) -> dict[str, list[Any]]:
    """What a finished compress run says of its plans."""
    metrics = [json.loads(file.read_text()) for file in evaluations(run)]
    return {
        "plans": plans(metrics),
        "costs": costs(metrics),
        "calls": calls(run),
        "console": [found[1] for line in (run / "log.txt").read_text().splitlines() if (found := _SHOWN.match(line))],
    }


def of_photographs(run: Path) -> str:
    metrics = json.loads(evaluations(run)[0].read_text())
    return f"{metrics['num_images']} images of {metrics['num_photographs']} photographs that no search saw."


def evaluations(run: Path) -> list[Path]:
    """The metrics of the run's plans, most steps first."""
    found = [*run.glob("evaluate/metrics.json"), *run.glob("evaluate/steps_*/metrics.json")]
    return sorted(found, key=lambda file: -len(json.loads(file.read_text())["recipe"]["timesteps"]))


def plans(metrics: Sequence[Row]) -> list[Row]:
    """The original, and every plan beside all plain ways to spend as much."""
    first = metrics[0]["metrics"]
    names = [name for name in LABELS if name in first]
    whole = first["num_inference_steps"]["original"] * first["gmacs"]["original"]

    def row(title: str, share: float, values: Row, verdict: str = "") -> Row:
        numbers = {LABELS[name]: "exact" if values[name] is None else values[name] for name in names}
        return {"plan": title, "MACs": share, **numbers, "the compressed plan is": verdict}

    steps = first["num_inference_steps"]["original"]
    rows = [row(f"original, {steps} steps", 1.0, {name: first[name]["original"] for name in names})]
    for found in metrics:
        own = found["metrics"]
        count, depth = own["num_inference_steps"]["compressed"], found["recipe"]["depth"]
        share = count * own["gmacs"]["compressed"] / whole
        title = f"**depth {depth}, {count} searched steps**"
        rows.append(row(title, share, {name: own[name]["compressed"] for name in names}))
        difference = own["psnr"].get("compressed_minus_uniform", {})
        uniform = {name: own[name]["uniform"] for name in names}
        rows.append(row(f"depth {depth}, {count} uniform steps", share, uniform, difference.get("verdict", "")))
        for plain in found.get("alternatives", []):
            values = {name: plain["metrics"][name]["value"] for name in names}
            verdict = plain["metrics"]["psnr"].get("compressed_minus_this", {}).get("verdict", "")
            which = "original" if plain["model"] == "original" else f"depth {depth}"
            steps_of = "searched" if "timesteps" in plain else "uniform"
            title = f"{which}, {plain['num_inference_steps']} {steps_of} steps, {plain['sampler']}"
            rows.append(row(title, share * plain["gmacs_ratio"], values, verdict))
    return rows


def costs(metrics: Sequence[Row]) -> list[Row]:
    """Size and time of the compressed plans beside the original."""
    rows = []
    for found in metrics:
        own = found["metrics"]
        rows.append(
            {
                "task": f"`{found['task']}`, depth {found['recipe']['depth']}",
                "parameters, original": own["params"]["original"],
                "compressed": own["params"]["compressed"],
                "GMACs of a call, original": own["gmacs"]["original"],
                "compressed ": own["gmacs"]["compressed"],
                "steps": f"{own['num_inference_steps']['original']} to {own['num_inference_steps']['compressed']}",
                "time per image, ratio in one run": own["latency_ms"]["ratio"],
            }
        )
    return rows


def calls(run: Path) -> list[Row]:
    """Steps of images that each stage sampled."""
    rows = []
    for file in sorted(run.glob("*/timing.json")):
        sampled = json.loads(file.read_text()).get("image_steps")
        if sampled:
            rows.append({"stage": file.parent.name, "steps of images sampled": sampled})
    return [*rows, {"stage": "all", "steps of images sampled": sum(row["steps of images sampled"] for row in rows)}]


def processor() -> str:
    """The processor's name, without the machine's."""
    file = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", file.read_text()) if file.is_file() else []
    return names[0] if names else platform.machine()


def latency(stored: Row) -> dict[str, Any]:
    """What `scripts.bench_latency` stored, as the table of its cells."""

    def row(found: Row) -> Row:
        networks, pipeline = found["networks"], found["pipeline"]
        return {
            "task": f"`{found['task']}`",
            "depth": found["depth"],
            "networks of a step: full, cut (ms)": pair(networks["original_ms"], networks["compressed_ms"]),
            "ratio [quartiles]": spread(networks),
            "share of the matrix rate": pair(
                networks["original_share_of_matrix_rate"], networks["compressed_share_of_matrix_rate"]
            ),
            "steps": "{} to {}".format(*found["steps"]),
            "pipeline: original, compressed (s)": pair(
                pipeline["original_ms"] / 1000, pipeline["compressed_ms"] / 1000
            ),
            "ratio [quartiles] ": spread(pipeline),
            "paper's ratio": found["paper_ratio"],
        }

    return {"cells": [row(found) for found in stored["cells"]], "passes": [passes(found) for found in stored["cells"]]}


def passes(found: Row) -> Row:
    """What the networks of a cell get through: samples a second, as measured and at the rate of the matrix product."""
    row: Row = {"task": f"`{found['task']}`"}
    samples = found["batch"] * found["branches"]
    for system, name in (("original", "full"), ("compressed", "cut")):
        rate = samples / found["networks"][f"{system}_ms"] * 1000
        row |= {
            f"{name}: passes a second": rate,
            f"{name}, at the matrix rate": rate / found["networks"][f"{system}_share_of_matrix_rate"],
            f"{name}: hours of a million": 1e6 / rate / 3600,
        }
    return row


def pair(one: float, other: float) -> str:
    return f"{cell(one)}, {cell(other)}"


def spread(found: Row) -> str:
    return f"{cell(found['ratio'])} [{cell(found['lower_quartile'])}, {cell(found['upper_quartile'])}]"


def store(name: str, result: Row) -> None:
    """Write a result, and renew the documents."""
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    main()


def main() -> None:
    for document in DOCUMENTS:
        before = document.read_text()
        after = renewed(before)
        if after != before:
            document.write_text(after)
            print(f"renewed {document.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
