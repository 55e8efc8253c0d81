"""Pipelines as ONNX graphs, one per network, with any batch and image size; each is compared with torch.

They are traced: for these networks that is as exact as torch's newer exporter, in seconds where that takes minutes.
Tracing keeps what Python decides at the traced size, so that size is odd: diffusers' U-Nets then take the branch that
fits every size, and a check at another size and batch tells whether anything else was kept.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..adapters.fold import fold_pipeline
from ..adapters.graphs import Graph, example_values
from ..errors import IdcError
from .stock_form import forget_paths

OPSET = 17
TOLERANCE = 1e-4  # of the largest value of an output; rounding in another order gives about 1e-6
# Batch, height and width of the latents.
_TRACED, _CHECKED = (2, 13, 11), (3, 16, 24)


def check_packages() -> None:
    """Raise IdcError unless what writes and runs ONNX is installed."""
    for name in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise IdcError(f"export.format=onnx needs the package {name}: pip install 'idcompress[onnx]'") from None


@torch.no_grad()
def export_onnx(
    pipeline: Any, graphs: list[Graph], folder: Path, timesteps: list[int], *, fold: bool = False
) -> tuple[dict[str, float], dict[str, int]]:
    """Write every graph as NAME.onnx, its weights as NAME.onnx.data, and compare them with torch in onnxruntime.

    The tokenizer of a text encoder is written, too.

    Args:
        pipeline: cut, float32, on the CPU.
        graphs: of this pipeline, by its task.
        folder: exists.
        timesteps: that it will be used at.
        fold: fold the pipeline, in place; the graphs are compared with what it was before.

    Returns:
        graph -> largest error, as a share of the largest value; what was folded -> parameters saved.

    Raises:
        IdcError: a graph is off by more than TOLERANCE.
    """
    traced = example_values(pipeline, graphs, *_TRACED, timesteps[0])
    checked = example_values(pipeline, graphs, *_CHECKED, timesteps[-1])
    saved = fold_pipeline(pipeline) if fold else {}
    if "input_ids" in traced:
        pipeline.tokenizer.save_pretrained(folder / "tokenizer")
        forget_paths(folder)
    errors = {}
    for graph in graphs:
        path = folder / f"{graph.name}.onnx"
        _write(graph, traced, path)
        errors[graph.name] = largest_error(graph, checked, path)
        if not errors[graph.name] <= TOLERANCE:
            raise IdcError(
                f"{path.name} is off by {errors[graph.name]:.1e} of the largest value, more than {TOLERANCE:.0e}, in "
                "onnxruntime; nothing was exported. Use export.format=diffusers, and please report the versions of "
                "torch and onnxruntime"
            )
    return errors, saved


def _write(graph: Graph, values: dict[str, Tensor], path: Path) -> None:
    import onnx

    def free_axes(name: str) -> dict[int, str]:
        dimensions = values[name].dim()
        sides = {2: f"{name}_height", 3: f"{name}_width"} if dimensions == 4 else {}
        return ({0: "batch"} if dimensions else {}) | sides

    with TemporaryDirectory(dir=path.parent) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of what it keeps
        traced = Path(scratch) / path.name
        torch.onnx.export(
            graph.module.eval(),
            tuple(values[name] for name in graph.inputs),
            str(traced),
            dynamo=False,
            opset_version=OPSET,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_axes={name: free_axes(name) for name in (*graph.inputs, *graph.outputs)},
        )
        # Above 2 GB the exporter writes a file per weight; whatever the size, one file holds them all.
        weights = path.with_name(f"{path.name}.data")
        onnx.save_model(onnx.load(traced), path, save_as_external_data=True, location=weights.name)
        weights.chmod(path.stat().st_mode)  # onnx makes it readable for its owner alone


def largest_error(graph: Graph, values: dict[str, Tensor], path: Path) -> float:
    """Largest difference between onnxruntime and torch, as a share of the largest value of an output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # The exporter drops inputs that nothing reads, for example the timestep in a branch of depth 1.
    feeds = {entry.name: values[entry.name].numpy() for entry in session.get_inputs()}
    errors = []
    for name, made in zip(graph.outputs, session.run(graph.outputs, feeds), strict=True):
        wanted = values[name].numpy()
        errors.append(np.abs(made - wanted).max() / max(np.abs(wanted).max(), 1e-12))
    return float(np.max(errors))
