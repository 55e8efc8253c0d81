"""From examples to images by a plan: what every stage, study and script samples with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..adapters.deep_features import giving
from ..adapters.layers import check_layers, passing_by
from ..adapters.pipeline import check_finite, not_finite, with_components
from ..adapters.unet import depth as depth_of
from ..core.ddim import PathNoise
from ..core.guidance import num_branches
from ..core.plan import Plan, Step
from ..core.process import Level, Prediction, Process, check_for_process
from ..core.reuse import Networks, held_depths, leaves_out, reusing
from ..core.sample import Beginnings, Denoise, Noise, Sampler, sample
from ..core.timestep_search import uniform_timesteps
from ..errors import IdcError, NotFiniteError
from ..runs.timing import count, part
from ..tasks._task import Conditioning, Task, step_generator
from ..types import Example

# A pipeline for a depth of the U-Net, for plans whose steps do not all compute the same.
PipelineAt = Callable[[int], Any]


@torch.inference_mode()
def translate(
    task: Task,
    pipeline: Any,
    examples: Sequence[Example],
    plan: Plan,
    *,
    seed: int = 0,
    conditioning: Conditioning | None = None,
    at_depth: PipelineAt | None = None,
    beginnings: Beginnings | None = None,
    depths: Sequence[int] = (),
) -> Tensor:
    """Translate a batch of examples of one size: encode, sample the plan, decode.

    Args:
        seed: of the noise; each image has generators of its own, and under ancestral sampling one noise path for plans
            of any length.
        conditioning: of `task.encode`, to use it for more than one run.
        at_depth, depths: see `sampling`.
        beginnings: of earlier plans of these examples, to go on from.

    Returns:
        Images (B, 3, H, W), float32 in [0, 1], CPU.

    Raises:
        IdcError: the plan asks for what this pipeline cannot compute.
    """
    with part("encode"):
        conditioning = encode(task, pipeline, examples, seed) if conditioning is None else conditioning
    arguments = sampling(
        task, pipeline, examples, plan, seed=seed, conditioning=conditioning, at_depth=at_depth, depths=depths
    )
    with part("denoise"):
        latents = check_sample(sample(plan=plan, beginnings=beginnings, **arguments), plan, pipeline)
    with part("decode"):
        return task.decode(pipeline, latents, conditioning)


def check_sample(latents: Tensor, plan: Plan, pipeline: Any) -> Tensor:
    """The same latents; raises NotFiniteError where the sampler, and no network, made NaN or infinity of them."""
    what = f"the sample after the last of {len(plan)} steps, at timestep {plan.timesteps[-1]},"
    return check_finite(latents, what, pipeline.unet)


def encode(task: Task, pipeline: Any, examples: Sequence[Example], seed: int) -> Conditioning:
    """What conditions the networks for a batch.

    Raises:
        NotFiniteError: it holds NaN or infinity.
    """
    conditioning = task.encode(pipeline, examples, seed)
    for name, values in conditioning.items():
        if values.is_floating_point():
            check_finite(values, f"what the networks are told ({name})", pipeline.unet)
    return conditioning


def sampling(
    task: Task,
    pipeline: Any,
    examples: Sequence[Example],
    plan: Plan,
    *,
    seed: int,
    conditioning: Conditioning,
    at_depth: PipelineAt | None = None,
    depths: Sequence[int] = (),
) -> dict[str, Any]:
    """The arguments of `core.sample.walk`, but the plans, for a batch; `plan` stands for all plans of one tree.

    Args:
        at_depth: gives the pipeline that computes so many levels, for steps that name a depth.
        depths: where hidden states are kept besides the plan's own depths, for other plans that begin alike.
    """
    process, sampler = task.process(pipeline), load_sampler(plan.sampler)
    if plan.coefficients is None and wants_coefficients(plan.sampler):
        raise IdcError(f"sampler={plan.sampler} moves by numbers, and the plan has none; idc tsopt fits them")
    try:
        check_for_process(plan.timesteps, process)
    except ValueError as error:
        raise IdcError(f"the plan does not fit this model: {error}") from None

    def project(prediction: Prediction, level: Level) -> Prediction:
        return task.project(prediction, level, conditioning)

    start = task.start(pipeline, examples, process.level(plan.timesteps[0]), seed)
    return {
        "denoise": _by_depth(task, pipeline, conditioning, plan, at_depth, depths),
        "start": start.to(pipeline.unet.device),
        "process": process,
        "sampler": sampler,
        "noise": noise_of(process, examples, seed) if sampler.STOCHASTIC else None,
        "project": project,
    }


def uniform_plan(
    process: Process, num_inference_steps: int, *, sampler: str = "ddim", guidance: Mapping[str, float] | None = None
) -> Plan:
    """So many evenly spaced steps that compute everything; by DDIM if the sampler wants numbers, which nobody fitted.

    Raises:
        IdcError: the process has fewer timesteps than that.
    """
    length = process.num_train_timesteps
    if not 1 <= num_inference_steps <= length:
        raise IdcError(f"this model has {length} timesteps; want 1 to {length} steps, got {num_inference_steps}")
    plain = "ddim" if wants_coefficients(sampler) else sampler
    return Plan.over(uniform_timesteps(num_inference_steps, process), sampler=plain, guidance=guidance)


def load_sampler(name: str) -> Sampler:
    """A registered sampler."""
    found: Sampler = registry.load("sampler", name, "sampler").SAMPLER
    return found


def wants_coefficients(name: str) -> bool:
    """Whether a sampler moves by numbers that have to be fitted first."""
    return "coefficients" in getattr(registry.load("sampler", name, "sampler"), "NEEDS", ())


def noise_of(process: Process, examples: Sequence[Example], seed: int) -> Noise:
    """The examples' own noise paths.

    Raises:
        IdcError: the process knows timesteps between whole numbers, for which there is no path.
    """
    if process.real_timesteps:
        raise IdcError("ancestral sampling wants whole timesteps, and those of this model are real; use sampler=ddim")
    return PathNoise(process, [step_generator(seed, example.index) for example in examples])


def _by_depth(
    task: Task,
    pipeline: Any,
    conditioning: Conditioning,
    plan: Plan,
    at_depth: PipelineAt | None,
    depths: Sequence[int],
) -> Denoise:
    """A denoiser by the pipeline and, for steps that name a depth or layers to pass by, by the pipeline cut there.

    Args:
        depths: where hidden states are kept for later steps besides the plan's own depths. If there are any, or a step
            leaves something out, what was computed at a step goes on to the next ones.
    """
    reuses = leaves_out(plan) or len(depths) > 0
    kept = {*depths, *held_depths(plan)} if plan.fill != "zero" else set()
    made: dict[tuple[int | None, tuple[str, ...]], Any] = {}
    missing = [step for step in plan.steps if step.depth is not None]
    if missing and at_depth is None:
        raise IdcError(
            f"the step at timestep {missing[0].timestep} names depth {missing[0].depth}, which cannot be had here"
        )

    check_layers(pipeline.unet, plan.skipped)

    def at(step: Step) -> Any:
        """The denoiser or, where steps leave something out, the parts of a step's levels and layers; made once."""
        key = step.depth, step.skip
        if key not in made:
            which = passing_by(at_depth(step.depth) if at_depth and step.depth is not None else pipeline, step.skip)
            if kept:
                which = with_components(which, {"unet": giving(which.unet, kept)})
            arguments = which, conditioning, plan.guidance
            made[key] = task.parts(*arguments) if reuses else task.denoise(*arguments)
        return made[key]

    by_parts = reusing(at, networks_of(task, pipeline, plan), plan.fill) if reuses else None

    def denoise(sample: Tensor, step: Step, cache: Any) -> tuple[Tensor, Any]:
        count(len(sample))
        output, cache = (by_parts or at(step))(sample, step, cache)
        if not bool(output.detach().isfinite().all()):
            networks = " and ".join(task.networks_of_a_step)
            what = f"the output of {networks} in the step at timestep {step.timestep}"
            raise NotFiniteError(not_finite(what, pipeline.unet.dtype))
        return output, cache

    return denoise


def networks_of(task: Task, pipeline: Any, plan: Plan) -> Networks:
    """What decides which steps of a plan can leave something out."""
    try:
        levels = depth_of(pipeline.unet)
    except ValueError:  # no U-Net that depth-skip knows, so that no step has another depth
        levels = 1
    return Networks(levels, num_branches(plan.guidance), len(task.networks_of_a_step) > 1)
