"""Pipelines as ONNX graphs, one per network, with any batch and image size; each is compared with torch.

They are traced: for these networks that is as exact as torch's newer exporter, in seconds where that takes minutes.
Tracing keeps what Python decides at the traced size, so that size is odd: diffusers' U-Nets then take the branch that
fits every size, and a check at another size and batch tells whether anything else was kept.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..adapters.fold import fold_pipeline
from ..adapters.graphs import Graph, example_values
from ..errors import IdcError
from .stock_form import forget_paths

OPSET = 17
# Largest error by precision, as a share of an output's largest value. float32 rounds in another order, which gives
# about 1e-6; float16 has three decimal digits, 8 bits two: how good their pictures are is for the user to measure.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "int8": 0.5}
# Batch, height and width of the latents.
_TRACED, _CHECKED = (2, 13, 11), (3, 16, 24)


class Exported(NamedTuple):
    """What was written.

    Attributes:
        errors: graph -> largest error, as a share of the largest value.
        folded: what was folded -> parameters saved.
        sizes: graph -> bytes in float32, and as it was written.
    """

    errors: dict[str, float]
    folded: dict[str, int]
    sizes: dict[str, tuple[int, int]]


def check_packages() -> None:
    """Raise IdcError unless what writes and runs ONNX is installed."""
    for name in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise IdcError(f"export.format=onnx needs the package {name}: pip install 'idcompress[onnx]'") from None


@torch.no_grad()
def export_onnx(
    pipeline: Any,
    graphs: list[Graph],
    folder: Path,
    timesteps: list[int],
    *,
    fold: bool = False,
    precisions: Mapping[str, str] | None = None,
) -> Exported:
    """Write every graph as NAME.onnx, its weights as NAME.onnx.data, and compare them with torch in onnxruntime.

    Inputs and outputs are float32 whatever the precision inside. The tokenizer of a text encoder is written, too.

    Args:
        pipeline: cut, float32, on the CPU.
        graphs: of this pipeline, by its task.
        folder: exists.
        timesteps: that it will be used at.
        fold: fold the pipeline, in place; the graphs are compared with what it was before.
        precisions: graph -> "float16" or "int8"; the others stay in float32.

    Raises:
        IdcError: a graph is off by more than TOLERANCE.
    """
    traced = example_values(pipeline, graphs, *_TRACED, timesteps[0])
    checked = example_values(pipeline, graphs, *_CHECKED, timesteps[-1])
    saved = fold_pipeline(pipeline) if fold else {}
    if "input_ids" in traced:
        pipeline.tokenizer.save_pretrained(folder / "tokenizer")
        forget_paths(folder)
    errors, sizes = dict[str, float](), dict[str, tuple[int, int]]()
    for graph in graphs:
        path, precision = folder / f"{graph.name}.onnx", (precisions or {}).get(graph.name, "float32")
        _write(graph, traced, path)
        errors[graph.name], before = _checked_error(graph, checked, path, "float32"), _size(path)
        if precision != "float32":
            (_to_float16 if precision == "float16" else _to_int8)(path)
            errors[graph.name] = _checked_error(graph, checked, path, precision)
        sizes[graph.name] = (before, _size(path))
    return Exported(errors, saved, sizes)


def _checked_error(graph: Graph, values: dict[str, Tensor], path: Path, precision: str) -> float:
    """A graph's largest error; IdcError where it is more than its precision explains."""
    error, most = largest_error(graph, values, path), TOLERANCE[precision]
    if not error <= most:
        advice = "" if precision == "float32" else " export.precision=float32 or"
        raise IdcError(
            f"{path.name} is off by {error:.1e} of the largest value, more than {most:.0e}, in onnxruntime; nothing "
            f"was exported. Use{advice} export.format=diffusers, and please report the versions of torch and "
            "onnxruntime"
        )
    return error


def _weights_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def _size(path: Path) -> int:
    """Bytes of a graph with its weights."""
    return sum(file.stat().st_size for file in (path, _weights_of(path)) if file.is_file())


def _save(model: Any, path: Path) -> None:
    """A graph in one file, all its weights in another, whatever their size."""
    import onnx

    weights = _weights_of(path)
    weights.unlink(missing_ok=True)  # else onnx appends to it
    onnx.save_model(model, path, save_as_external_data=True, location=weights.name)
    if weights.is_file():
        weights.chmod(path.stat().st_mode)  # onnx makes it readable for its owner alone


def _to_float16(path: Path) -> None:
    """Replace a graph's weights and arithmetic by float16."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(path)
    # The converter leaves alone what some operators want in float32, sizes for example, if it is no node of its own.
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        tensor = node.attribute[0].t
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
        model.graph.node.remove(node)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values that float16 rounds to its smallest one
        # Shapes are inferred for graphs below 2 GB alone, and the conversion needs none.
        converted = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    _save(converted, path)


def _to_int8(path: Path) -> None:
    """Replace a graph's matrix products and convolutions by ones of 8-bit numbers (onnxruntime's dynamic quantisation).

    Their weights are unsigned, as onnxruntime's convolution wants them on the CPU.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        quantize_dynamic(str(path), str(made), weight_type=QuantType.QUInt8, use_external_data_format=True)
        _save(onnx.load(made), path)


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
        _save(onnx.load(traced), path)  # above 2 GB the exporter writes a file per weight


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
        wanted = values[f"{graph.name}/{name}"].numpy()
        errors.append(np.abs(made - wanted).max() / max(np.abs(wanted).max(), 1e-12))
    return float(np.max(errors))
