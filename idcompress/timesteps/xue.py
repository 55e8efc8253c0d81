"""Timesteps with the least bound on the error of a third-order solver, by the noise schedule alone."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..core.process import Process, check_num_inference_steps, half_log_snr, timesteps_at
from ..errors import IdcError
from ..types import Schedule, ScheduleRequest

SOURCE = "Xue et al., Accelerating Diffusion Sampling with Optimized Time Steps, CVPR 2024, arXiv 2402.17376"
CITATION = """@inproceedings{xue2024accelerating,
  title     = {Accelerating Diffusion Sampling with Optimized Time Steps},
  author    = {Xue, Shuchen and Liu, Zhaoqiang and Chen, Fei and Zhang, Shifeng and Hu, Tianyang and Xie, Enze and
               Li, Zhenguo},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2024},
  note      = {arXiv:2402.17376}
}"""
Init = Literal["unif_t", "quad", "unif", "edm"]


def timesteps(request: ScheduleRequest, *, init: Init = "unif_t", trunc_num: int | None = None) -> Schedule:
    """Minimise `objective` over the inner nodes; nothing is sampled.

    Args:
        init: where to start: uniform timesteps, which the authors advise for latent models, quadratic ones, nodes
            uniform in half log signal-to-noise ratio, or EDM's with rho 7.
        trunc_num: see `objective`; None takes what the authors advise, 3 for at most seven steps and 0 for more.
    """
    n, process = request.num_inference_steps, request.process
    check_num_inference_steps(n, process.num_train_timesteps)
    check_process(process)
    if trunc_num is not None and (type(trunc_num) is not int or trunc_num < 0):
        raise IdcError(f"timesteps.trunc_num must be null or a whole number from 0 on, got {trunc_num!r}")
    trunc = trunc_num if trunc_num is not None else 3 if n <= 7 else 0
    nodes, value = minimise(initial(init, n, process), trunc_num=trunc)
    details: dict[str, object] = {"init": init, "trunc_num": trunc, "objective": value}
    return Schedule(timesteps_at(process, nodes[:-1]), details)


def check_process(process: Process) -> None:
    """Raise IdcError for a flow, whose levels have no error weight in this bound; asked before anything is sampled."""
    if process.real_timesteps:
        raise IdcError(
            "timesteps=xue wants a variance-preserving noise schedule, and this model's is a flow's; use gits"
        )


def objective(lambdas: Sequence[float] | Tensor, *, trunc_num: int) -> float:
    """The bound that the nodes are chosen by.

    Args:
        lambdas: the n + 1 nodes, rising, both ends included, as half log signal-to-noise ratios; the network is called
            at the first n.
        trunc_num: steps before this one enter by themselves; the errors of the later ones may cancel.

    Source: arXiv 2402.17376, eq. 18 to 20, with the orders and the error weight sigma^2 / alpha of the released code.
    """
    return float(_objective(torch.as_tensor(lambdas, dtype=torch.float64), trunc_num))


def _objective(nodes: Tensor, trunc_num: int) -> Tensor:
    """The same as a tensor (), through which gradients flow."""
    count = len(nodes) - 1
    error = torch.sigmoid(-2 * nodes) / torch.sigmoid(2 * nodes).sqrt()  # the network's at a node: sigma^2 / alpha
    steps = torch.arange(count)
    orders = torch.minimum(steps + 1, count - steps).clamp(max=3)  # lower at both ends
    apart, shared = nodes.new_zeros(()), nodes.new_zeros(count)
    for order in (1, 2, 3):
        chosen = steps[orders == order]
        called = chosen[:, None] - torch.arange(order)  # a step's node and those before
        terms = error[called] * _weights(nodes, chosen, order)
        alone = (chosen < trunc_num) | (order == 1)
        apart = apart + torch.linalg.vector_norm(terms[alone], dim=1).sum()
        shared = shared.index_add(0, called[~alone].flatten(), terms[~alone].flatten())
    return apart + shared.abs().sum()


def _weights(nodes: Tensor, steps: Tensor, order: int) -> Tensor:
    """Integrals over steps of e^lambda times each Lagrange polynomial of a step's node and those before, (S, order)."""
    start, h = nodes[steps], nodes[steps + 1] - nodes[steps]
    zeroth = torch.expm1(h)
    first = h * h.exp() - zeroth  # of e^x x over 0 .. h; zeroth and second are those of e^x and e^x x^2
    second = h**2 * h.exp() - 2 * first
    one, two = (nodes[steps - back] - start for back in (1, 2))
    if order == 1:
        parts = [zeroth]
    elif order == 2:
        parts = [zeroth - first / one, first / one]
    else:
        parts = [
            (second - (one + two) * first + one * two * zeroth) / (one * two),
            (second - two * first) / (one * (one - two)),
            (second - one * first) / (two * (two - one)),
        ]
    return start.exp()[:, None] * torch.stack(parts, dim=1)


def minimise(nodes: Tensor, *, trunc_num: int) -> tuple[list[float], float]:
    """A local minimum of the objective near some nodes, ends fixed: the nodes and its value there.

    The gaps between nodes are a softmax, so that order is kept without constraints. A local minimum is what is wanted:
    with ten nodes the errors of crowded ones can be made to cancel, and the bound to fall to a sixth, on absurd lists.
    """
    first, span = nodes[0], nodes[-1] - nodes[0]
    logits = ((nodes.diff() / span).clamp_min(1e-6)).log().requires_grad_()

    def placed() -> Tensor:
        inner = first + span * torch.softmax(logits, dim=0).cumsum(0)[:-1]
        return torch.cat([nodes[:1], inner, nodes[-1:]])

    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = _objective(placed(), trunc_num)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = placed().detach()
    value = float(_objective(found, trunc_num))
    before = float(_objective(nodes, trunc_num))
    if not value < before:  # a line search may end nowhere, on an objective that has kinks
        return nodes.tolist(), before
    return found.tolist(), value


def initial(name: str, count: int, process: Process) -> Tensor:
    """Nodes (count + 1,), float64, between the process's noisiest timestep and 0, where a search may begin."""
    ends = [half_log_snr(process.level(timestep)) for timestep in (process.max_timestep, 0)]
    shares = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    if name == "unif":
        return ends[0] + (ends[1] - ends[0]) * shares
    if name == "edm":
        most, least = (math.exp(-end / 7) for end in ends)
        return -7 * (most + (least - most) * shares).log()
    last = process.max_timestep
    times = (1 - shares) * last if name == "unif_t" else ((1 - shares) * last**0.5) ** 2
    known = torch.tensor([half_log_snr(process.level(t)) for t in range(last + 1)], dtype=torch.float64)
    below = times.floor().long().clamp(max=last - 1)
    nodes = known[below] + (times - below) * (known[below + 1] - known[below])
    nodes[0], nodes[-1] = ends
    return nodes
