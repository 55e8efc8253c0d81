"""Timesteps learned by gradients through the sampler, from the distance to the many-step result."""

from typing import Any

import torch
from torch import Tensor

from ..core.learned_list import run_over, spread, whole_list
from ..core.process import check_num_inference_steps
from ..core.timestep_search import trailing_timesteps, uniform_timesteps
from ..errors import IdcError
from ..types import Schedule, ScheduleRequest

SOURCE = "Tong et al., Learning to Discretize Denoising Diffusion ODEs, ICLR 2025, arXiv 2405.15506"
CITATION = """@inproceedings{tong2025ld3,
  title     = {Learning to Discretize Denoising Diffusion {ODEs}},
  author    = {Tong, Vinh and Hoang, Trung-Dung and Liu, Anji and Van den Broeck, Guy and Niepert, Mathias},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2025},
  note      = {arXiv:2405.15506}
}"""
NEEDS = ("score", "denoiser")


def check_sampler(sampler: Any, name: str) -> None:
    """Refuse a sampler whose steps depend on more than what gradients flow through.

    Args:
        sampler: its module, as registered.

    Raises:
        IdcError: it draws noise, or moves by numbers that are fitted anew for every list.
    """
    why = "draws fresh noise at every step" if sampler.SAMPLER.STOCHASTIC else ""
    if "coefficients" in getattr(sampler, "NEEDS", ()):
        why = "fits its numbers anew to every list"
    if why:
        raise IdcError(
            f"timesteps=ld3 learns by gradients through the sampler, and sampler={name} {why}; use sampler=ddim, "
            "dpm_solver or unipc, or timesteps=pattern"
        )


def timesteps(
    request: ScheduleRequest, *, rounds: int = 5, learning_rate: float = 0.005, momentum: float = 0.9
) -> Schedule:
    """Descend from evenly spread timesteps, by RMSprop; the best scored of uniform, trailing and learned lists.

    What is learned is the logits of the steps' shares of the way, and the loss is the log of the mean square error of
    the final sample, its PSNR but for a factor. As published: optimizer, rates, clipping and decay. Not so: the
    published loss is LPIPS of the pictures, and there the timestep that the network is told may differ from the list's,
    and the start from the given noise, none of which a list can hold.

    Args:
        rounds: over all images, with an update after each batch and a score after each round.
        learning_rate: of the logits; times 0.8 after 5 updates without a lower loss.
        momentum: of RMSprop.

    Raises:
        IdcError: gradients cannot be had, or a number is out of range.
    """
    n, process, score = request.num_inference_steps, request.process, request.score
    check_num_inference_steps(n, process.num_train_timesteps)
    if score is None or request.denoiser is None or request.sampler is None:
        raise IdcError("timesteps=ld3 learns by gradients through the sampler, which cannot be had here; use pattern")
    for name, value, least in (("rounds", rounds, 1), ("learning_rate", learning_rate, 0), ("momentum", momentum, 0)):
        if not value >= least:
            raise IdcError(f"timesteps.{name} must be at least {least}, got {value}")
    starts = {"uniform": uniform_timesteps(n, process), "trailing": trailing_timesteps(n, process)}
    found: dict[tuple[float, ...], str] = {tuple(nodes): name for name, nodes in reversed(starts.items())}
    logits = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.RMSprop([logits], lr=learning_rate, momentum=momentum)
    decay = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.8, patience=5)
    updates = 0
    for _ in range(rounds if n > 1 else 0):
        for denoise, start, final in request.denoiser():
            optimizer.zero_grad()
            loss = _loss(run_over(spread(logits, process), denoise, start, process, request.sampler), final)
            if not loss.isfinite():
                break  # nothing is left to gain, or the model puts out no numbers, which scoring says
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([logits], 1.0)
            optimizer.step()
            decay.step(loss.item())
            updates += 1
        found.setdefault(tuple(whole_list(spread(logits, process))), "learned")
    scores = {nodes: score(list(nodes)) for nodes in found}
    best = max(scores, key=scores.__getitem__)
    return Schedule(list(best), {"found": found[best], "updates": updates})


def _loss(made: Tensor, wanted: Tensor) -> Tensor:
    return (made - wanted).double().square().mean().log()
