"""Sizes of ONNX graphs in float32, float16 and 8 bits, and their times in onnxruntime on the CPU, in one run.

    python -m scripts.bench_onnx --task ip2p                       the embedded model, whole and in four cuts
    python -m scripts.bench_onnx --task ip2p --cuts none depth_skip:9 bk_sdm:tiny --size 64 --repeats 20
    python -m scripts.bench_onnx --task controlnet --model FOLDER  any pipeline folder of the task's class

Graphs are of the networks of every step. Each cut and precision takes turns with the first cut in float32, so that a
busy machine slows both; what counts is the median of the pairs' ratios. `python -m scripts.results onnx_ip2p` stores
them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from idcompress import registry
from idcompress.adapters.graphs import example_values
from idcompress.adapters.pipeline import own_pipeline
from idcompress.core.cut import Cut
from idcompress.core.plan import Plan
from idcompress.export.onnx import check_packages, export_onnx
from idcompress.runs import files
from idcompress.sources.load import load_source
from idcompress.sources.model import Model

PRECISIONS = ("float32", "float16", "int8")
TIMESTEPS = [640, 3]
CUTS = ["none", "depth_skip:9", "bk_sdm:base", "bk_sdm:small", "bk_sdm:tiny"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="ip2p", choices=registry.names("task"))
    parser.add_argument("--model", help="a pipeline folder; the embedded model by default")
    parser.add_argument("--cuts", nargs="+", default=CUTS, help="none, depth_skip:DEPTH or bk_sdm:SIZE, the base first")
    parser.add_argument("--size", type=int, default=32, help="side of the latents")
    parser.add_argument("--repeats", type=int, default=10, help="pairs of calls, after one that does not count")
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime")
    parser.add_argument("--out", type=Path, default=Path("bench_onnx.json"))
    arguments = parser.parse_args()
    check_packages()
    with TemporaryDirectory() as scratch:
        rows = measured(arguments, Path(scratch))
    files.write_json(arguments.out, result(arguments, rows))
    for row in rows:
        print("  ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))


def result(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What `scripts.results` stores."""
    return {
        "note": f"Latents of side {arguments.size}, batch 1; medians of {arguments.repeats} pairs of calls.",
        "values": {"graphs": rows},
    }


def measured(arguments: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """A row per cut and precision: bytes, largest error, and the time of a step against the first row's."""
    source = {"name": "tiny" if arguments.model is None else "given", "path": arguments.model}
    model = load_source(arguments.task, source, device="cpu", dtype="float32", prune="depth_skip")
    task = registry.load("task", arguments.task, "task").Task()
    rows, first = list[dict[str, Any]](), None
    for name in arguments.cuts:
        cut = cut_of(name, model)
        pipeline = own_pipeline(model.at(cut), Plan.over(TIMESTEPS))
        graphs = task.graphs(pipeline)
        networks = [graph.name for graph in graphs if graph.name in task.networks_of_a_step]
        values = example_values(pipeline, graphs, 1, arguments.size, arguments.size, TIMESTEPS[0])
        for precision in PRECISIONS:
            folder = scratch / f"{name.replace(':', '_')}_{precision}"
            folder.mkdir()
            inside = {} if precision == "float32" else dict.fromkeys(networks, precision)
            made = export_onnx(pipeline, graphs, folder, TIMESTEPS, precisions=inside)
            sessions = [session(folder / f"{network}.onnx", arguments.threads) for network in networks]
            step = [(one, {e.name: values[e.name].numpy() for e in one.get_inputs()}) for one in sessions]
            size = sum(made.sizes[network][1] for network in networks)
            first = first or (step, size)
            rows.append(
                {
                    "cut": "none, the full model" if cut is None else model.words(cut),
                    "precision": precision,
                    "MB": size / 1e6,
                    "of the first": size / first[1],
                    "time of a call, ratio in one run": ratio(step, first[0], arguments.repeats),
                    "largest error, of the largest value": max(made.errors[network] for network in networks),
                }
            )
    return rows


def cut_of(name: str, model: Model) -> Cut | None:
    """The cut that METHOD:CHOICE names; None for the full model."""
    method, _, choice = name.partition(":")
    if method == "none":
        return None
    return model.chosen(int(choice)) if method == "depth_skip" else Cut(method, {"size": choice})


def session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def seconds(step: list[tuple[Any, dict[str, np.ndarray]]]) -> float:
    """Of one call of all networks of a step."""
    began = time.perf_counter()
    for one, feeds in step:
        one.run(None, feeds)
    return time.perf_counter() - began


def ratio(step: Any, other: Any, repeats: int) -> float:
    """The median ratio of two steps' times, which take turns; 1 for a step and itself."""
    seconds(step), seconds(other)
    return statistics.median(seconds(step) / seconds(other) for _ in range(repeats))


if __name__ == "__main__":
    main()
