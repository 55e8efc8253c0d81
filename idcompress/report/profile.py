"""The tables of `idc profile` as text, from what profile.json holds."""

from __future__ import annotations

import io
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


def to_text(result: dict[str, Any], image_px: int) -> str:
    """What is to be read of profile.json: levels, components, step counts.

    Args:
        image_px: side of the images that were counted and timed.
    """
    console = Console(file=io.StringIO(), width=120, color_system=None, highlight=False)
    for title, table in (_level_table(result, image_px), _component_table(result), _step_table(result)):
        console.print(title)
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).rstrip()


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def _level_table(result: dict[str, Any], image_px: int) -> tuple[str, Table]:
    totals = result["totals"]
    timed = totals.get("latency", {}).get("levels")
    table = _table(
        *("level", "parameters", "%", "sum %", "file to here", "GMAC", "%", "sum %", "with attention"),
        *(["latency %", "sum %"] if timed else []),
    )
    for position, row in enumerate(result["levels"]):
        cells = [f"D{row['level']:02}", f"{row['params']:,}", _pct(row["params_pct"]), _pct(row["cumulative_pct"])]
        cells += [f"{row['file_params']:,}", _gmacs(row["gmacs"]), _pct(row["gmacs_pct"])]
        cells += [_pct(row["cumulative_gmacs_pct"]), _gmacs(row["gmacs_with_attention"])]
        if timed:
            cells += [_pct(timed[position]["latency_pct"]), _pct(timed[position]["cumulative_latency_pct"])]
        table.add_row(*cells)
    table.add_section()
    cells = ["total", f"{totals['params']:,}", "", "", f"{totals['file_params']:,}"]
    table.add_row(*cells, _gmacs(totals["gmacs"]), "", "", _gmacs(totals["gmacs_with_attention"]))
    title = (
        f"U-Net of {result['task']}, model {result['model']}, {image_px} px. Parameters by the paper's rule, without "
        "time embedding; file to here: all parameters of a U-Net cut at this depth. GMAC of one call: convolutions and "
        "linear layers, the sum being the cut U-Net's; and with attention products."
    )
    return title, table


def _component_table(result: dict[str, Any]) -> tuple[str, Table]:
    totals = result["totals"]
    latency = totals.get("latency", {})
    headings = ["component", "called", "in the file", "paper's rule", "GMAC", "with attention"]
    table = _table(*headings, *(["time"] if latency else []))

    def add(name: str, row: Row, called: str = "", time: Any = None) -> None:
        cells = [f"{row['file_params']:,}", f"{row['params']:,}", _gmacs(row["gmacs"])]
        cells += [_gmacs(row["gmacs_with_attention"]), "" if time is None else f"{time:.3g}"]
        table.add_row(name, called, *cells[: len(headings) - 2 + bool(latency)])

    for name, row in totals["components"]["original"].items():
        add(name, row, row["called"], latency.get("components", {}).get(name, {}).get("relative"))
        cut = totals["components"].get("compressed", {}).get(name, row)
        if cut != row:
            add("  cut", cut, row["called"])
    table.add_section()
    for label, key in (("networks of a step", "networks"), ("pipeline", "pipeline")):
        is_step = key == "networks" and bool(latency)
        add(label, totals[key]["original"], time=1.0 if is_step else None)
        if "compressed" in totals[key]:
            add("  cut", totals[key]["compressed"], time=latency["network_call"]["ratio"] if is_step else None)
            if totals[key]["unet_cut_only"] != totals[key]["compressed"]:
                add("  cut, side networks whole", totals[key]["unet_cut_only"])
    depth = f" Cut at depth {totals['depth']} of {totals['full_depth']}." if totals["depth"] else ""
    depth = depth or (f" Cut: {totals['kept']}." if "kept" in totals else "")
    return f"Components: parameters by both rules, and GMAC of one call for one image.{depth}", table


def _step_table(result: dict[str, Any]) -> tuple[str, Table]:
    totals = result["totals"]
    latency, systems = totals.get("latency"), list(totals["components"])
    timed = {row["num_inference_steps"]: row for row in latency["by_steps"]} if latency else {}
    names = {"original": "original", "compressed": "cut"}
    table = _table(
        "steps",
        "calls",
        *(f"GMAC, {names[system]}" for system in systems),
        *(f"time, {names[system]}" for system in systems if latency),
    )
    for row in totals["by_steps"]:
        cells = [str(row["num_inference_steps"]), str(row["network_calls"])]
        cells += [f"{_gmacs(row[s]['networks_gmacs'])} / {_gmacs(row[s]['gmacs'])}" for s in systems]
        if latency:
            cells += [_time(timed[row["num_inference_steps"]][s]) for s in systems]
        table.add_row(*cells)
    title = (
        f"One image by step count, guidance included (samples per step: {totals['guidance_branches']}): networks / all."
    )
    return title + (" Times are calls times medians." if latency else ""), table


def _time(row: Row) -> str:
    if "total_ms" in row:
        return f"{row['networks_ms'] / 1000:.3g} / {row['total_ms'] / 1000:.3g} s"
    return f"{row['networks_ratio']:.3f} / {row['total_ratio']:.3f}"


def _pct(value: float) -> str:
    return f"{value:.2f}"


def _gmacs(value: float) -> str:
    return f"{value:.4g}" if value < 10 else f"{value:.2f}" if value < 10_000 else f"{value:,.0f}"
