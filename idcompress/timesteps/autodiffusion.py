"""AutoDiffusion's evolutionary search over sets of timesteps, by the same score as every other strategy here."""

from ..core.evolution import evolve
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
NEEDS = ("score",)


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
) -> Schedule:
    """Evolve lists of different timesteps; 499 of them are scored at the released defaults.

    Args:
        population, epochs, parents, mutations, crossovers, mutation_rate: see `core.evolution.evolve`.
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
    found = evolve(
        lambda nodes: score(list(nodes)),
        n,
        num_train_timesteps=length,
        population=population,
        epochs=epochs,
        parents=parents,
        mutations=mutations,
        crossovers=crossovers,
        mutation_rate=mutation_rate,
        first=tuple(gamma_timesteps(1.0, n, num_train_timesteps=length)) if from_uniform else None,
        seed=request.seed + search_seed,
    )
    return Schedule(list[float](found.nodes), {"evaluations": found.evaluations, "search_seed": search_seed})
