"""AutoDiffusion's evolutionary search over sets of timesteps, and over layers that steps pass by where that is wanted.

It has the same score as every other strategy here.
"""

from typing import Any

from ..core.evolution import Calls, evolve, evolve_layers
from ..core.process import check_num_inference_steps
from ..core.timestep_search import gamma_timesteps
from ..errors import IdcError
from ..types import Schedule, ScheduleRequest

SOURCE = "Li et al., AutoDiffusion, ICCV 2023, arXiv 2309.10438"
CITATION = """@inproceedings{li2023autodiffusion,
  title     = {{AutoDiffusion}: Training-Free Optimization of Time Steps and Architectures for Automated Diffusion
               Model Acceleration},
  author    = {Li, Lijiang and Li, Huixia and Zheng, Xiawu and Wu, Jie and Xiao, Xuefeng and Wang, Rui and
               Zheng, Min and Pan, Xin and Chao, Fei and Ji, Rongrong},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2023},
  note      = {arXiv:2309.10438}
}"""
NEEDS = ("score", "layers")


def timesteps(
    request: ScheduleRequest,
    *,
    population: int = 50,
    epochs: int = 10,
    parents: int = 10,
    mutations: int = 25,
    crossovers: int = 15,
    mutation_rate: float = 0.1,
    from_uniform: bool = True,
    search_seed: int = 0,
    most_skipped: float = 0.0,
) -> Schedule:
    """Evolve lists of different timesteps; 499 of them are scored at the released defaults.

    Args:
        population, epochs, parents, mutations, crossovers, mutation_rate: see `core.evolution.evolve`.
        most_skipped: the greatest share of layers that steps may pass by, at least 0 and below 1. Above 0 what they
            save pays for further steps, so that a list may be longer than asked for; see
            `core.evolution.evolve_layers`. The released search has 0.1, 15 epochs and a mutation rate of 0.25.
        from_uniform: begin with the uniform list and mutations of it, as the released scripts do.
        search_seed: of the search's draws, with the run's seed.
    """
    n, length = request.num_inference_steps, request.process.num_train_timesteps
    check_num_inference_steps(n, length)
    score = request.score
    if score is None:
        raise IdcError("timesteps=autodiffusion searches by sampling, which cannot be done here; use trailing")
    numbers = {"population": population, "epochs": epochs, "parents": parents}
    for name, value in numbers.items():
        if value < 1:
            raise IdcError(f"timesteps.{name} must be at least 1, got {value}")
    if not 0 <= most_skipped < 1:
        raise IdcError(f"timesteps.most_skipped must be at least 0 and below 1, got {most_skipped}")
    how: dict[str, Any] = {
        "num_train_timesteps": length,
        "population": population,
        "epochs": epochs,
        "parents": parents,
        "mutations": mutations,
        "crossovers": crossovers,
        "mutation_rate": mutation_rate,
        "first": tuple(gamma_timesteps(1.0, n, num_train_timesteps=length)) if from_uniform else None,
        "seed": request.seed + search_seed,
    }
    if most_skipped == 0:
        found = evolve(lambda nodes: score(list(nodes)), n, **how)
        return Schedule(list[float](found.best), {"evaluations": found.evaluations, "search_seed": search_seed})
    names = request.layers
    if not names:
        raise IdcError("timesteps.most_skipped: this model has no layers that a step can pass by; leave it at 0")

    def listed(calls: Calls) -> tuple[list[float], list[tuple[str, ...]]]:
        return [node for node, _ in calls], [tuple(names[layer] for layer in skipped) for _, skipped in calls]

    def score_calls(calls: Calls) -> float:
        timesteps, skip = listed(calls)
        return score(timesteps, skip=skip)

    best = evolve_layers(score_calls, n, len(names), most_skipped=most_skipped, **how)
    details: dict[str, object] = {
        "evaluations": best.evaluations,
        "search_seed": search_seed,
        "most_skipped": most_skipped,
    }
    timesteps, skip = listed(best.best)
    return Schedule(timesteps, details, skip)
