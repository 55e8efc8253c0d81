"""Sizes of ONNX graphs in float32, float16 and 8 bits, and their times in onnxruntime on the CPU, in one run.

    python -m scripts.bench_onnx --task ip2p                       the embedded model, whole and at depth 8
    python -m scripts.bench_onnx --task ip2p --depths 13 9 --size 64 --repeats 20
    python -m scripts.bench_onnx --task controlnet --model FOLDER  any pipeline folder of the task's class

Graphs are of the networks of every step. Each depth and precision takes turns with the first depth in float32, so that
a busy machine slows both; what counts is the median of the pairs' ratios. OUT.json holds every number.
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
from idcompress.core.plan import Plan
from idcompress.export.onnx import check_packages, export_onnx
from idcompress.runs import files
from idcompress.sources.load import load_source

PRECISIONS = ("float32", "float16", "int8")
TIMESTEPS = [640, 3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="ip2p", choices=registry.names("task"))
    parser.add_argument("--model", help="a pipeline folder; the embedded model by default")
    parser.add_argument(
        "--depths", type=int, nargs="+", default=[13, 8], help="the first is what others are held against"
    )
    parser.add_argument("--size", type=int, default=32, help="side of the latents")
    parser.add_argument("--repeats", type=int, default=10, help="pairs of calls, after one that does not count")
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime")
    parser.add_argument("--out", type=Path, default=Path("bench_onnx.json"))
    arguments = parser.parse_args()
    check_packages()
    with TemporaryDirectory() as scratch:
        rows = measured(arguments, Path(scratch))
    files.write_json(arguments.out, {"version": 1, **{k: str(v) for k, v in vars(arguments).items()}, "rows": rows})
    print(f"{'depth':>6} {'precision':<10}{'MB':>10}{'of the first':>14}{'time':>8}{'error':>10}")
    for row in rows:
        numbers = (
            f"{row['bytes'] / 1e6:>10.2f}{row['bytes_ratio']:>14.1%}{row['time_ratio']:>8.2f}{row['error']:>10.1e}"
        )
        print(f"{row['depth']:>6} {row['precision']:<10}{numbers}")


def measured(arguments: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """A row per depth and precision: bytes, largest error, and the time of a step against the first row's."""
    source = {"name": "tiny" if arguments.model is None else "given", "path": arguments.model}
    model = load_source(arguments.task, source, device="cpu", dtype="float32", prune="depth_skip")
    task = registry.load("task", arguments.task, "task").Task()
    rows, first = list[dict[str, Any]](), None
    for depth in arguments.depths:
        cut = model.pipeline if depth == model.full_depth else model.at(model.chosen(depth))
        pipeline = own_pipeline(cut, Plan.over(TIMESTEPS))
        graphs = task.graphs(pipeline)
        names = [graph.name for graph in graphs if graph.name in task.networks_of_a_step]
        values = example_values(pipeline, graphs, 1, arguments.size, arguments.size, TIMESTEPS[0])
        for precision in PRECISIONS:
            folder = scratch / f"{depth}_{precision}"
            folder.mkdir()
            inside = {} if precision == "float32" else dict.fromkeys(names, precision)
            made = export_onnx(pipeline, graphs, folder, TIMESTEPS, precisions=inside)
            sessions = [session(folder / f"{name}.onnx", arguments.threads) for name in names]
            step = [(one, {e.name: values[e.name].numpy() for e in one.get_inputs()}) for one in sessions]
            size = sum(made.sizes[name][1] for name in names)
            first = first or (step, size)
            rows.append(
                {
                    "depth": depth,
                    "precision": precision,
                    "bytes": size,
                    "bytes_ratio": size / first[1],
                    "error": max(made.errors[name] for name in names),
                    "time_ratio": ratio(step, first[0], arguments.repeats),
                }
            )
    return rows


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
