"""Evolutionary searches over sets of timesteps and over the layers that steps pass by, as AutoDiffusion does them.

Source: Li et al., AutoDiffusion, ICCV 2023, arXiv 2309.10438, and its released searches for Stable Diffusion and for
ADM. In the first a crossover may yield a repeated timestep; here the child is discarded, as one that is known already.
In the second a layer that is passed by never changes, since the new one is compared and not assigned, and children of
two lengths lose their ends; here neither happens.
"""

import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Nodes = tuple[int, ...]
# Of each step, by falling timestep: the timestep, and the numbers of the layers that it passes by, rising.
Calls = tuple[tuple[int, tuple[int, ...]], ...]
Individual = TypeVar("Individual", bound=Hashable)


@dataclass(frozen=True)
class Evolution(Generic[Individual]):
    """The best individual, its score, and how many were scored."""

    best: Individual
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
) -> Evolution[Nodes]:
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
    draw = random.Random(seed)

    def at_random() -> Nodes:
        return tuple(sorted(draw.sample(range(num_train_timesteps), count), reverse=True))

    def mutated(nodes: Nodes) -> Nodes:
        free = [timestep for timestep in range(num_train_timesteps) if timestep not in nodes]
        draw.shuffle(free)
        changed = [free.pop() if free and draw.random() < mutation_rate else timestep for timestep in nodes]
        return tuple(sorted(changed, reverse=True))

    def crossed(one: Nodes, other: Nodes) -> Nodes:
        return tuple(sorted((draw.choice(pair) for pair in zip(one, other, strict=True)), reverse=True))

    kind = _Kind(draw, at_random, mutated, crossed, lambda nodes: len({*nodes}) == count)
    generations = _Generations(kind, score, population, parents, mutations, crossovers)
    generations.begin(first)
    for _ in range(epochs - 1):
        generations.add()
    return generations.found()


def evolve_layers(
    score: Callable[[Calls], float],
    count: int,
    layers: int,
    *,
    num_train_timesteps: int = 1000,
    population: int = 50,
    epochs: int = 15,
    parents: int = 10,
    mutations: int = 25,
    crossovers: int = 15,
    mutation_rate: float = 0.25,
    most_skipped: float = 0.1,
    first: Nodes | None = None,
    seed: int = 0,
) -> Evolution[Calls]:
    """Search for steps that run no more layers in all than `count` whole steps; those passed by pay for further steps.

    The share of all layers that may be passed by is 0 at first. It grows by a fifth of `most_skipped` after every
    generation that brought nothing better, and after each from the fifth on. 749 individuals are scored at the
    defaults.

    Args:
        score: calls -> value, higher is better; called once for each.
        count: whole steps that the budget pays for.
        layers: of the network.
        mutation_rate: of timesteps, and of layers that are passed by.
        most_skipped: the greatest share of the layers of all steps that may be passed by, below 1.
        others: as for `evolve`.
    """
    draw, budget = random.Random(seed), count * layers
    opened = 0  # fifths

    def may_skip(length: int) -> int:
        return int(most_skipped * opened / 5 * length * layers)

    def at_random() -> Calls:
        longest = int(budget / (layers * (1 - most_skipped * opened / 5))) + 1
        lengths = range(count, min(longest, num_train_timesteps) + 1)
        length = draw.choice([one for one in lengths if one * layers - budget <= may_skip(one)])
        places = draw.sample(range(length * layers), draw.randint(length * layers - budget, may_skip(length)))
        nodes = sorted(draw.sample(range(num_train_timesteps), length), reverse=True)
        return tuple(
            (node, tuple(sorted(place % layers for place in places if place // layers == position)))
            for position, node in enumerate(nodes)
        )

    def mutated(calls: Calls) -> Calls:
        nodes, changed = {node for node, _ in calls}, []
        free = [timestep for timestep in range(num_train_timesteps) if timestep not in nodes]
        draw.shuffle(free)
        for node, skipped in calls:
            run = [layer for layer in range(layers) if layer not in skipped]
            draw.shuffle(run)
            others = (run.pop() if run and draw.random() < mutation_rate else layer for layer in skipped)
            moved = free.pop() if free and draw.random() < mutation_rate else node
            changed.append((moved, tuple(sorted(others))))
        return tuple(sorted(changed, reverse=True))

    def crossed(one: Calls, other: Calls) -> Calls:
        shorter, longer = sorted((one, other), key=len)
        child = [draw.choice(pair) for pair in zip(shorter, longer, strict=False)]
        rest = longer[len(shorter) :] if draw.random() < 0.5 else ()
        return tuple(sorted((*child, *rest), reverse=True))

    def is_legal(calls: Calls) -> bool:
        skipped = sum(len(layers_of_step) for _, layers_of_step in calls)
        apart = len({node for node, _ in calls}) == len(calls)
        return apart and len(calls) * layers - skipped <= budget and skipped <= may_skip(len(calls))

    kind = _Kind(draw, at_random, mutated, crossed, is_legal)
    generations = _Generations(kind, score, population, parents, mutations, crossovers)
    generations.begin(None if first is None else tuple((node, ()) for node in first))
    for epoch in range(1, epochs):
        before = generations.found().value
        generations.add()
        if opened < 5 and (epoch >= 5 or generations.found().value <= before):
            opened += 1
    return generations.found()


@dataclass(frozen=True)
class _Kind(Generic[Individual]):
    """How individuals are made, and which of them count."""

    draw: random.Random
    at_random: Callable[[], Individual]
    mutated: Callable[[Individual], Individual]
    crossed: Callable[[Individual, Individual], Individual]
    is_legal: Callable[[Individual], bool]


class _Generations(Generic[Individual]):
    """Everything that was scored so far, and how the next generation comes from the best of it."""

    def __init__(
        self,
        kind: _Kind[Individual],
        score: Callable[[Individual], float],
        population: int,
        parents: int,
        mutations: int,
        crossovers: int,
    ) -> None:
        self.kind, self.score, self.population, self.parents = kind, score, population, parents
        self.mutations, self.crossovers = mutations, crossovers
        self.values: dict[Individual, float] = {}

    def begin(self, first: Individual | None) -> None:
        kind, number = self.kind, self.population
        if first is None:
            self._breed(kind.at_random, number, 10 * number)
            return
        self.values[first] = self.score(first)
        half = max(number // 2, 1)
        self._breed(kind.at_random, half - 1, 10 * half)
        self._breed(lambda: kind.mutated(first), number - 1 - len(self.values), 10 * number)

    def add(self) -> None:
        kind, best = self.kind, sorted(self.values, key=lambda one: -self.values[one])[: self.parents]

        def of_one() -> Individual:
            return kind.mutated(kind.draw.choice(best))

        def of_two() -> Individual:
            return kind.crossed(kind.draw.choice(best), kind.draw.choice(best))

        made = self._breed(of_one, self.mutations, 10 * self.mutations)
        made += self._breed(of_two, self.crossovers, 10 * self.crossovers)
        self._breed(kind.at_random, self.population - made, 10 * self.population)

    def found(self) -> Evolution[Individual]:
        best = max(self.values, key=lambda one: self.values[one])
        return Evolution(best, self.values[best], len(self.values))

    def _breed(self, make: Callable[[], Individual], wanted: int, tries: int) -> int:
        made = 0
        for _ in range(tries):
            if made >= wanted:
                break
            child = make()
            if child not in self.values and self.kind.is_legal(child):
                self.values[child] = self.score(child)
                made += 1
        return made
