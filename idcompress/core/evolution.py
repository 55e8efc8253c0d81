"""Evolutionary search over sets of timesteps, as AutoDiffusion does it.

Source: Li et al., AutoDiffusion, ICCV 2023, arXiv 2309.10438, and its released search for Stable Diffusion. There a
crossover may yield a repeated timestep; here the child is discarded, as one that is known already.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

Nodes = tuple[int, ...]


@dataclass(frozen=True)
class Evolution:
    """The best list, falling, its score, and how many lists were scored."""

    nodes: Nodes
    value: float
    evaluations: int


def evolve(
    score: Callable[[Nodes], float],
    count: int,
    *,
    num_train_timesteps: int = 1000,
    population: int = 50,
    epochs: int = 10,
    parents: int = 10,
    mutations: int = 25,
    crossovers: int = 15,
    mutation_rate: float = 0.1,
    first: Nodes | None = None,
    seed: int = 0,
) -> Evolution:
    """Search for the best set of `count` different timesteps.

    The first generation is `first` and random lists up to half the population, then mutations of `first`, one list
    fewer than the population in all; without `first` random lists only. Each later one has mutations of the best lists
    so far, crossovers of two of them, and random lists for the rest. The last epoch only ranks: 499 lists are scored at
    the defaults.

    Args:
        score: falling list -> value, higher is better; called once per list.
        count: length of a list, at most num_train_timesteps.
        seed: of every draw.
    """
    draw, values = random.Random(seed), dict[Nodes, float]()

    def breed(make: Callable[[], Nodes], wanted: int, tries: int) -> int:
        made = 0
        for _ in range(tries):
            if made >= wanted:
                break
            nodes = make()
            if nodes not in values and len(set(nodes)) == count:
                values[nodes] = score(nodes)
                made += 1
        return made

    def at_random() -> Nodes:
        return tuple(sorted(draw.sample(range(num_train_timesteps), count), reverse=True))

    def mutated(nodes: Nodes) -> Nodes:
        free = [timestep for timestep in range(num_train_timesteps) if timestep not in nodes]
        draw.shuffle(free)
        changed = [free.pop() if free and draw.random() < mutation_rate else timestep for timestep in nodes]
        return tuple(sorted(changed, reverse=True))

    def crossed(one: Nodes, other: Nodes) -> Nodes:
        return tuple(sorted((draw.choice(pair) for pair in zip(one, other, strict=True)), reverse=True))

    def child_of_one(best: list[Nodes]) -> Nodes:
        return mutated(draw.choice(best))

    def child_of_two(best: list[Nodes]) -> Nodes:
        return crossed(draw.choice(best), draw.choice(best))

    if first is None:
        breed(at_random, population, 10 * population)
    else:
        values[first] = score(first)
        half = max(population // 2, 1)
        breed(at_random, half - 1, 10 * half)
        breed(lambda: mutated(first), population - 1 - len(values), 10 * population)
    for _ in range(epochs - 1):
        best = sorted(values, key=lambda nodes: -values[nodes])[:parents]
        made = breed(partial(child_of_one, best), mutations, 10 * mutations)
        made += breed(partial(child_of_two, best), crossovers, 10 * crossovers)
        breed(at_random, population - made, 10 * population)
    found = max(values, key=lambda nodes: values[nodes])
    return Evolution(found, values[found], len(values))
