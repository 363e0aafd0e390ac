"""The paper's evolutionary search (Section 3.3): mutation and crossover of the best, under hard limits.

Pure: what a subnet is worth, which are legal and where randomness comes from are arguments.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from numpy.random import Generator

from growtas.batch import SubnetBatch
from growtas.errors import ConfigError
from growtas.progress import SILENT, Progress
from growtas.sampling import Feasible, crossover, mutate, sample_feasible
from growtas.space import SearchSpace
from growtas.subnet import Subnet


class Orderable(Protocol):
    """A score: a number, or a tuple whose later entries break ties. Higher is better."""

    def __lt__(self, other: Any, /) -> bool: ...


Score = TypeVar("Score", bound=Orderable)

_ATTEMPTS = 10
"""Tries a child before random subnets fill the population, as in AutoFormer."""
_RANDOM_ROUNDS = 4
_RANDOM_DRAWS = 1024


@dataclass(frozen=True, kw_only=True)
class EvolutionConfig:
    """The paper's settings (Section 3.3).

    Attributes:
        generations: the first one is random.
        population: new subnets a generation, half by mutation and half by crossover.
        parents: the best subnets so far, from which children are made.
        mutation_probability: of each gene.
    """

    generations: int = 20
    population: int = 50
    parents: int = 10
    mutation_probability: float = 0.2

    def __post_init__(self) -> None:
        for field in ("generations", "population", "parents"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{field} is {value!r}; it must be a whole number above zero")
        if not 0 < self.mutation_probability <= 1:
            raise ConfigError(f"mutation_probability is {self.mutation_probability!r}; it must be above 0 and at most 1")


@dataclass(frozen=True)
class GenerationResult(Generic[Score]):
    """One generation.

    Attributes:
        number: from 1.
        ranked: its subnets and scores, best first.
        best: the best of all generations so far.
    """

    number: int
    ranked: tuple[tuple[Subnet, Score], ...]
    best: tuple[Subnet, Score]


@dataclass(frozen=True)
class EvolutionResult(Generic[Score]):
    """What an evolution found.

    Attributes:
        ranked: every evaluated subnet with its score, best first; equal scores in the order of evaluation.
        history: the generations; fewer than asked where no new legal subnet was left.
    """

    ranked: tuple[tuple[Subnet, Score], ...]
    history: tuple[GenerationResult[Score], ...]


def evolve(
    space: SearchSpace,
    evaluate: Callable[[Sequence[Subnet]], Sequence[Score]],
    feasible: Feasible,
    rng: Generator,
    config: EvolutionConfig | None = None,
    progress: Progress = SILENT,
) -> EvolutionResult[Score]:
    """Search a space; no subnet is evaluated twice, and none that breaks a limit.

    Args:
        evaluate: scores of subnets, in their order; higher is better.
        feasible: the monotone predicate of the limits.
        rng: the only source of randomness: the same seed gives the same search.
        progress: gets each :class:`GenerationResult` as an event.

    Raises:
        LimitError: no subnet is legal.
    """
    config = config or EvolutionConfig()
    scores: dict[Subnet, Score] = {}
    ranked: list[tuple[Subnet, Score]] = []
    history: list[GenerationResult[Score]] = []
    for number in range(1, config.generations + 1):
        parents = [subnet for subnet, _ in ranked[: config.parents]]
        children = _children(space, parents, scores, feasible, rng, config)
        if not children:
            break
        values = evaluate(children)
        scores.update(zip(children, values, strict=True))
        # Sorting is stable: among equals, whoever was evaluated first stays ahead.
        ranked = sorted(scores.items(), key=lambda item: item[1], reverse=True)
        generation = sorted(zip(children, values, strict=True), key=lambda item: item[1], reverse=True)
        history.append(GenerationResult(number, tuple(generation), ranked[0]))
        progress.event(history[-1])
    return EvolutionResult(tuple(ranked), tuple(history))


def _children(
    space: SearchSpace,
    parents: Sequence[Subnet],
    seen: dict[Subnet, Any],
    feasible: Feasible,
    rng: Generator,
    config: EvolutionConfig,
) -> list[Subnet]:
    """The next generation: legal, new, and as many as the population where there are so many."""
    children: dict[Subnet, None] = {}

    def breed(make: Callable[[], Subnet], count: int) -> None:
        target = len(children) + count
        for _ in range(_ATTEMPTS * count):
            if len(children) >= target:
                return
            child = make()
            if child not in seen and child not in children and feasible(SubnetBatch.from_subnets([child]))[0]:
                children[child] = None

    def pick() -> Subnet:
        return parents[int(rng.integers(len(parents)))]

    if parents:
        half = config.population - config.population // 2
        breed(lambda: mutate(space, pick(), rng, config.mutation_probability), half)
        breed(lambda: crossover(pick(), pick(), rng), config.population - half)
    fill_up(children, space, seen, feasible, rng, config.population)
    return list(children)


def fill_up(
    children: dict[Subnet, None],
    space: SearchSpace,
    seen: Mapping[Subnet, Any],
    feasible: Feasible,
    rng: Generator,
    size: int,
) -> None:
    """Add random legal subnets that are not yet seen to ``children``, up to ``size`` where there are so many.

    Raises:
        LimitError: no subnet is legal.
    """
    for _ in range(_RANDOM_ROUNDS):
        missing = size - len(children)
        if not missing:
            break
        # Draws beyond the missing ones cost next to nothing, and find the last few new subnets of a small space.
        draws = sample_feasible(space, missing if not seen else max(missing, _RANDOM_DRAWS), rng, feasible)
        new = dict.fromkeys(subnet for subnet in draws if subnet not in seen and subnet not in children)
        children.update(itertools.islice(((subnet, None) for subnet in new), missing))
