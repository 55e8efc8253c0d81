"""The Python of an ONNX folder's card: input.png to output.png by NumPy and onnxruntime, executable as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import indent
from typing import TYPE_CHECKING, Any

from ..core.fit import MAX_ORDER
from ..core.process import CLEAN, Level

if TYPE_CHECKING:
    from ..tasks._task import NumpyExample

# What a model output says of the sample at a level, as in core/process.py.
_PREDICTIONS = {
    "epsilon": "epsilon, x0 = output, (sample - noise * output) / signal",
    "v_prediction": "epsilon, x0 = signal * output + noise * sample, signal * sample - noise * output",
    "sample": "epsilon, x0 = (sample - signal * output) / noise, output",
    "flow": "epsilon, x0 = sample + signal * output, sample - noise * output",
}
_HEAD = """\
import numpy as np
import onnxruntime
from PIL import Image
"""
_NETWORKS = """\

def network(name):
    session = onnxruntime.InferenceSession(f"{{name}}.onnx")
    inputs, outputs = ([entry.name for entry in ends] for ends in (session.get_inputs(), session.get_outputs()))
    return lambda **values: dict(zip(outputs, session.run(outputs, {{name: values[name] for name in inputs}})))

{names} = map(network, "{words}".split())
"""
_TEXT = """\
tokenizer = CLIPTokenizer.from_pretrained("tokenizer")
ids = tokenizer({prompts}, padding="max_length", truncation=True, return_tensors="np").input_ids
"""
_PICTURE = """\
picture = Image.open("input.png").convert("RGB")
{note}size = [side {enlarged}// {factor} * {factor} for side in picture.size]
image = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), np.float32).transpose(2, 0, 1)[None] {scale}
rng = np.random.default_rng(0)
timesteps = {timesteps}
levels = {levels}  # (signal, noise) there; (1, 0) is the picture itself
"""
_LOOP = """
{start}
for timestep, (signal, noise), (next_signal, next_noise) in zip(timesteps, levels, levels[1:]):
{output}
    {prediction}
    sample = next_signal * x0 + next_noise * epsilon
{decode}
"""
_FITTED_LOOP = """
# fitted to these steps: for the sample, then for the predictions of x0 from the latest back
coefficients = {coefficients}
{start}
predictions = []
for timestep, (signal, noise), (next_signal, next_noise), row in zip(timesteps, levels, levels[1:], coefficients):
{output}
    {prediction}
    features = [sample, x0, *predictions]
    predictions.insert(0, x0)
    sample = next_signal * x0 + next_noise * epsilon
    for weights, feature in zip(row, features):
        sample = sample + np.array(weights, np.float32).reshape(1, -1, 1, 1) * feature
{decode}
"""
_SAVE = """
pixels = (decoded[0] / 2 + 0.5).clip(0, 1).transpose(1, 2, 0)
Image.fromarray((pixels * 255).round().astype(np.uint8)).save("output.png")
"""
_TO_RANGE = {(-1, 1): "/ 127.5 - 1", (0, 1): "/ 255"}


def numpy_code(
    example: NumpyExample,
    graphs: Sequence[str],
    timesteps: Sequence[float],
    levels: Sequence[Level],
    guidance: dict[str, float],
    prediction_type: str,
    latent_channels: int,
    factor: int,
    coefficients: Sequence[Sequence[float]] | None = None,
) -> list[str]:
    """Lines that make output.png.

    Args:
        example: the task's part.
        graphs: their names.
        levels: (signal, noise) at the timesteps.
        factor: pixels per latent.
        coefficients: a plan's; None samples by DDIM.
    """
    prompts = list(example.prompts)
    head = _HEAD + ("from transformers import CLIPTokenizer\n" if prompts else "")
    text = _TEXT.format(prompts=str(prompts).replace("'", '"')) if prompts else ""
    networks = _NETWORKS.format(names=", ".join(graphs), words=" ".join(graphs))
    picture = _PICTURE.format(
        note=f"# {example.note}\n" if example.note else "",
        enlarged="" if example.upscale == 1 else f"* {example.upscale} ",
        factor=factor,
        scale=_TO_RANGE[example.image_range],
        timesteps=list(timesteps),
        levels=[tuple(float(f"{part:.9g}") for part in level) for level in (*levels, CLEAN)],
    )
    numbers = {"guidance_scale": 1.0, "image_guidance_scale": 1.0} | guidance
    numbers |= {"latent_channels": latent_channels, "factor": factor}
    loop = (_LOOP if coefficients is None else _FITTED_LOOP).format(
        coefficients=[_by_feature(row, latent_channels) for row in coefficients or ()],
        start=example.start.format(**numbers),
        output=indent(example.output.format(**numbers), " " * 4),
        prediction=_PREDICTIONS[prediction_type],
        decode=example.decode.format(**numbers),
    )
    return (head + networks + text + picture + loop + _SAVE).splitlines()


def _by_feature(row: Sequence[float], channels: int) -> list[Any]:
    """A row of coefficients with one entry per feature: a number, or a list of one per channel."""
    if len(row) <= 1 + MAX_ORDER:
        return list(row)
    return [list(row[first : first + channels]) for first in range(0, len(row), channels)]
