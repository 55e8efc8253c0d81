"""The Python of an ONNX folder's card: input.png to output.png by NumPy and onnxruntime, executable as it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import indent
from typing import TYPE_CHECKING, Any

from ..core.fit import MAX_ORDER
from ..core.plan import Plan
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
_LOOP = """{before}
{start}
{memory}for timestep, (signal, noise), (next_signal, next_noise){names} in zip(timesteps, levels, levels[1:]{values}):
{output}
    {prediction}
{move}
{decode}
"""
_MOVE = "sample = next_signal * x0 + next_noise * epsilon"
_COEFFICIENTS = """
# fitted to these steps: for the sample, then for the predictions of x0 from the latest back
coefficients = {coefficients}
"""
_FITTED_MOVE = f"""\\
features = [sample, x0, *predictions]
predictions.insert(0, x0)
{_MOVE}
for weights, feature in zip(row, features):
    sample = sample + np.array(weights, np.float32).reshape(1, -1, 1, 1) * feature"""
# A step that leaves something out, see core/reuse.py.
_STEPS = """
# of each step: levels of the U-Net (None: all), guidance passes, whether a side network is called
steps = {steps}
by_depth = {by_depth}

def first(values, count):
    return {{name: value[:count] if value.ndim else value for name, value in values.items()}}

def stand_in(timestep, states):
    (before, older), (last, state) = states[0], states[-1]
    return state if before == last else state + (state - older) * np.float32((timestep - last) / (last - before))
"""
_STEP = """\
unet, side = by_depth[depth]
{inputs}
count = len(inputs["sample"]) if passes == "all" else 1
inputs, deep = first(inputs, count), {{}}
if side and refresh:
    for name, value in side(**inputs, **first(beside, count)).items():
        sides[name] = np.concatenate([value, sides.get(name, value)[count:]])
if (0, depth) in hidden:
    deep[f"hidden_{{depth}}"] = np.stack([stand_in(timestep, hidden[place, depth]) for place in range(count)])
made = unet(**inputs, **first(sides, count), **deep)
outputs = made.pop("model_output")[:, None]
for name, states in made.items():
    for place, state in enumerate(states):
        key = place, int(name.removeprefix("hidden_"))
        hidden[key] = [*hidden.get(key, [])[{before}], (timestep, state)]
if passes == "all":
{combine}
    difference = output - outputs[0]
else:
    output = outputs[0] + (difference if passes == "held" else 0)"""
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
    plan: Plan | None = None,
) -> list[str]:
    """Lines that make output.png.

    Args:
        example: the task's part.
        graphs: their names.
        levels: (signal, noise) at the timesteps.
        factor: pixels per latent.
        coefficients: a plan's; None samples by DDIM.
        plan: with what is really computed, where steps differ in that; the graphs are those of `graphs_of_plan`.
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
    parts = {name: getattr(example, name).format(**numbers) for name in ("start", "inputs", "combine", "decode")}
    before, memory, names, values, move = "", [], "", "", _MOVE
    if coefficients is not None:
        before += _COEFFICIENTS.format(coefficients=[_by_feature(row, latent_channels) for row in coefficients])
        memory, names, values, move = ["predictions = []"], ", row", ", coefficients", _FITTED_MOVE
    output = _every_part(example.side, parts)
    if plan is not None:
        before += _plan_words(plan, graphs, example.side)
        memory.append("sides, hidden, difference = {}, {}, 0")
        names, values = f"{names}, (depth, passes, refresh)", f"{values}, steps"
        kept = "-1:" if plan.fill == "linear" else ":0"
        output = _STEP.format(inputs=parts["inputs"], combine=indent(parts["combine"], " " * 4), before=kept)
    loop = _LOOP.format(
        before=before,
        start=parts["start"],
        memory="".join(f"{line}\n" for line in memory),
        names=names,
        values=values,
        output=indent(output, " " * 4),
        prediction=_PREDICTIONS[prediction_type],
        move=indent(move, " " * 4),
        decode=parts["decode"],
    )
    return (head + networks + text + picture + loop + _SAVE).splitlines()


def _every_part(side: str, parts: Mapping[str, str]) -> str:
    """Lines of a step that computes everything."""
    called = f", **{side}(**inputs, **beside)" if side else ""
    return "\n".join([parts["inputs"], f'outputs = unet(**inputs{called})["model_output"][:, None]', parts["combine"]])


def _plan_words(plan: Plan, graphs: Sequence[str], side: str) -> str:
    """What each step computes, and by which graphs."""
    depths = [None, *sorted({step.depth for step in plan.steps if step.depth is not None}, reverse=True)]
    named = {depth: [f"{name}_{depth}" if depth else name for name in ("unet", side)] for depth in depths}
    by_depth = (f"{depth}: ({unet}, {beside if beside in graphs else None})" for depth, (unet, beside) in named.items())
    steps = [(step.depth, step.passes, step.refresh) for step in plan.steps]
    return _STEPS.format(steps=steps, by_depth="{" + ", ".join(by_depth) + "}")


def _by_feature(row: Sequence[float], channels: int) -> list[Any]:
    """A row of coefficients with one entry per feature: a number, or a list of one per channel."""
    if len(row) <= 1 + MAX_ORDER:
        return list(row)
    return [list(row[first : first + channels]) for first in range(0, len(row), channels)]
