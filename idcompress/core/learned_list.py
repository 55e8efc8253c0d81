"""A list of timesteps as real numbers, and how the end of a run depends on them: gradients through the whole run.

Between whole timesteps a network is taken to be linear in the timestep, and so is the angle whose cosine and sine are
signal and noise. At whole timesteps a run is then what the sampling loop makes of it. What a move depends on besides
tensors, the levels, enters a sampler as plain numbers; its slope there is a central difference, which costs no call of
the network, so that any sampler without noise will do. Every call of the network is computed again when gradients flow
back, so that no more than one call's activations are held at a time.

Source of the idea: Tong et al., Learning to Discretize Denoising Diffusion ODEs, arXiv 2405.15506.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .plan import Step
from .process import CLEAN, Level, Process, predict
from .sample import Denoise, Moment, Sampler

_SHIFT = 0.01  # of a timestep, for the slope of a move


def level_at(process: Process, timestep: float | int) -> Level:
    """The level at any real timestep from 0 to the process's last."""
    below, above = math.floor(timestep), math.ceil(timestep)
    if process.real_timesteps or below == above:
        return process.level(timestep if process.real_timesteps else below)
    share, angles = timestep - below, [math.atan2(*reversed(process.level(whole))) for whole in (below, above)]
    angle = angles[0] + share * (angles[1] - angles[0])
    return Level(math.cos(angle), math.sin(angle))


@dataclass(frozen=True)
class _Visited:
    """A step of a run: where it was, and what the network said."""

    timestep: float | int
    sample: Tensor
    model_output: Tensor

    def moment(self, process: Process, shift: float | int = 0, *, double: bool = False) -> Moment:
        """As samplers look at it, as if its timestep were another; the step itself plays no part in a move."""
        level = level_at(process, min(max(self.timestep + shift, 0), process.max_timestep))
        sample, model_output = (
            part.detach().cpu().double() if double else part for part in (self.sample, self.model_output)
        )
        return Moment(Step(0), level, sample, predict(model_output, sample, level, process.prediction_type))


def run_over(
    nodes: Float[Tensor, " steps"], denoise: Denoise, start: Float[Tensor, "b ..."], process: Process, sampler: Sampler
) -> Float[Tensor, "b ..."]:
    """Where a run over real timesteps ends; gradients flow to the nodes but the first, which is where it starts.

    Args:
        nodes: falling, on the CPU, within [0, process.max_timestep].
        denoise: computes everything at every step; called at the whole timesteps on either side of a node.
        start: (B, ...), the sample at the first node.
        sampler: without noise or fitted numbers.
    """
    sample, visited, times = start, list[_Visited](), nodes.detach().tolist()
    learned = [nodes[0].detach(), *nodes[1:]]
    for position, timestep in enumerate(times):
        visited.append(_Visited(timestep, sample, _output(learned[position], denoise, sample)))
        following = times[position + 1] if position + 1 < len(times) else None
        history = visited[-sampler.ORDER :]
        sample = _moved(history, following, learned[: position + 2], process, sampler)
    return sample


def _output(node: Tensor, denoise: Denoise, sample: Tensor) -> Tensor:
    """The network at a real timestep, linear between whole ones."""
    below = math.floor(node.item())

    def call(state: Tensor, timestep: int) -> Tensor:
        return denoise(state, Step(timestep), None)[0]

    low: Tensor = checkpoint(call, sample, below, use_reentrant=False)
    if node.item() == below and not node.requires_grad:
        return low
    beyond = below + 1 if below < node.item() or below == 0 else below - 1  # at a whole one the slope of the way down
    other: Tensor = checkpoint(call, sample, beyond, use_reentrant=False)
    share = ((node - below) / (beyond - below)).to(sample)
    return low + share * (other - low)


def _moved(
    history: Sequence[_Visited],
    following: float | int | None,
    nodes: Sequence[Tensor],
    process: Process,
    sampler: Sampler,
) -> Tensor:
    """The sampler's move, with its slopes in the timesteps that it looks at."""

    def move(shifted: int | None = None, shift: float | int = 0, *, double: bool = False) -> Tensor:
        moments = [one.moment(process, shift if shifted == i else 0, double=double) for i, one in enumerate(history)]
        if following is None:
            return sampler.advance(moments, CLEAN)
        end = following + (shift if shifted == len(history) else 0)
        return sampler.advance(moments, level_at(process, min(max(end, 0), process.max_timestep)))

    moved = move()
    looked_at = len(history) + (following is not None)
    for place, node in enumerate(nodes[len(nodes) - looked_at :]):
        if node.requires_grad:
            ends = [move(place, shift, double=True) for shift in (-_SHIFT, _SHIFT)]
            slope = ((ends[1] - ends[0]) / (2 * _SHIFT)).to(moved)
            moved = moved + slope * (node - node.detach()).to(moved)
    return moved


def spread(logits: Float[Tensor, " steps"], process: Process) -> Float[Tensor, " steps"]:
    """Falling nodes from the noisiest timestep on: the shares of the way to 0 that the steps take, by a softmax.

    Equal logits spread the nodes evenly; the last step goes all the way to 0.
    """
    shares = torch.softmax(logits, dim=0)
    passed = torch.cat([shares.new_zeros(1), shares.cumsum(0)[:-1]])
    return process.max_timestep * (1 - passed)


def whole_list(nodes: Float[Tensor, " steps"]) -> list[int]:
    """The whole timesteps that lie nearest."""
    return [round(node) for node in nodes.detach().tolist()]
