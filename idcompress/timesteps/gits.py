"""Lists by dynamic programming over the many-step run, with the discount that scores best."""

from ..core.dynamic_programme import DISCOUNTS, Metric, jump_costs, lists_by_discount
from ..core.process import check_num_inference_steps
from ..errors import IdcError
from ..types import Schedule, ScheduleRequest

SOURCE = "Chen et al., On the Trajectory Regularity of ODE-based Diffusion Sampling, ICML 2024, arXiv 2405.11326"
CITATION = """@inproceedings{chen2024gits,
  title     = {On the Trajectory Regularity of {ODE}-based Diffusion Sampling},
  author    = {Chen, Defang and Zhou, Zhenyu and Wang, Can and Shen, Chunhua and Lyu, Siwei},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2024},
  note      = {arXiv:2405.11326}
}"""
NEEDS = ("score", "teacher")


def timesteps(request: ScheduleRequest, *, discounts: list[float] | None = None, metric: Metric = "dev") -> Schedule:
    """The cheapest way over the states of the many-step run, by the discount that scores best.

    Args:
        discounts: of later jumps; each gives a list, and every list is scored once. A single one is taken without; None
            tries DISCOUNTS.
        metric: of a jump's cost, see `core.dynamic_programme.jump_costs`.

    Raises:
        IdcError: more steps are wanted than the many-step run has, or nothing may be sampled.
    """
    n, process = request.num_inference_steps, request.process
    check_num_inference_steps(n, process.num_train_timesteps)
    wanted = list(DISCOUNTS) if discounts is None else discounts
    if not isinstance(wanted, list) or not wanted or not all(type(d) in (int, float) and d > 0 for d in wanted):
        raise IdcError(f"timesteps.discounts must be null or a list of numbers > 0, got {discounts!r}")
    if request.teacher is None:
        raise IdcError("timesteps=gits works on the many-step run, which cannot be had here; use gamma")
    teacher = request.teacher()
    if n > len(teacher.timesteps):
        raise IdcError(
            f"timesteps=gits chooses among the {len(teacher.timesteps)} timesteps of the many-step run, got "
            f"tsopt.num_inference_steps={n}; raise tsopt.reference_steps"
        )
    costs = jump_costs(teacher.timesteps, teacher.samples, teacher.originals, teacher.final, process, metric=metric)
    found = lists_by_discount(teacher.timesteps, costs, n, wanted)
    if len(found) > 1 and request.score is None:
        raise IdcError("timesteps=gits scores its discounts by sampling; give timesteps.discounts=[VALUE] to use one")
    score = request.score
    best = max(found, key=lambda one: score(list(one), discount=found[one]) if score and len(found) > 1 else 0.0)
    return Schedule(list(best), {"discount": found[best], "cost_metric": metric})
