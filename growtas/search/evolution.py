"""The paper's evolutionary search (Section 3.3): mutation and crossover of the best subnets, under hard limits.

The evaluation, the limits and the random generator are arguments, so the search itself has no side effects.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from growtas.batch import SubnetBatch
from growtas.fields import Rule, check_fields, checked, real, whole
from growtas.progress import SILENT, Progress
from growtas.sampling import Feasible, crossover, mutate, sample_feasible
from growtas.search.accuracy_predictor import AccuracyPredictor, legal_shapes, promising
from growtas.search.scoring import Score
from growtas.space import SearchSpace
from growtas.subnet import Subnet

_ATTEMPTS = 10
"""Number of tries per child before random subnets fill the population, as in AutoFormer."""
_RANDOM_ROUNDS = 4
_RANDOM_DRAWS = 1024
_COUNT = Rule(whole(1).accepts, "a whole number above zero")


@dataclass(frozen=True, kw_only=True)
class EvolutionConfig:
    """Settings of the evolution; the defaults are the paper's (Section 3.3).

    Attributes:
        generations: number of generations, including the first, which is random.
        population: number of new subnets per generation, half by mutation and half by crossover.
        parents: number of best subnets so far from which children are made.
        mutation_probability: probability that a gene mutates.
    """

    generations: int = checked(20, _COUNT)
    population: int = checked(50, _COUNT)
    parents: int = checked(10, _COUNT)
    mutation_probability: float = checked(0.2, Rule(real(0, 1, above=True).accepts, "above 0 and at most 1"))

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class GenerationResult:
    """Result of one generation.

    Attributes:
        number: number of the generation, from 1.
        ranked: subnets and scores of this generation, best first.
        best: the best subnet and score of all generations so far.
    """

    number: int
    ranked: tuple[tuple[Subnet, Score], ...]
    best: tuple[Subnet, Score]


@dataclass(frozen=True)
class EvolutionResult:
    """Result of an evolution.

    Attributes:
        ranked: all evaluated subnets with their scores, best first; equal scores in the order of evaluation.
        history: the generations; fewer than requested if no new legal subnet was left.
    """

    ranked: tuple[tuple[Subnet, Score], ...]
    history: tuple[GenerationResult, ...]


def evolve(
    space: SearchSpace,
    evaluate: Callable[[Sequence[Subnet]], Sequence[Score]],
    feasible: Feasible,
    rng: Generator,
    config: EvolutionConfig | None = None,
    progress: Progress = SILENT,
    *,
    predict: bool = False,
    first: Sequence[Subnet] = (),
) -> EvolutionResult:
    """Searches a space. Evaluates no subnet twice, and no subnet that breaks a limit.

    Args:
        space: the search space.
        evaluate: returns the scores of subnets in their order; higher is better.
        feasible: the monotone predicate of the limits.
        rng: the only source of randomness, so the same seed gives the same search.
        config: the settings; by default the paper's.
        progress: receives each :class:`GenerationResult` as an event.
        predict: whether predicted accuracies choose the subnets from the second generation on
            (:mod:`growtas.search.accuracy_predictor`). Then every subnet must be evaluated in full.
        first: subnets for the first generation, best first; at most half of it are the legal ones among them.

    Raises:
        LimitError: no subnet is legal.
    """
    config = config or EvolutionConfig()

    def propose(scores: Mapping[Subnet, Score]) -> list[Subnet]:
        children: dict[Subnet, None] = {}
        parents = list(scores)[: config.parents]

        if not parents:
            children = dict.fromkeys(beginning(space, feasible, config.population // 2, first, predict=predict))
        elif predict:
            predictor = AccuracyPredictor(space, list(scores), [score[0] for score in scores.values()])

            def best(subnets: Sequence[Subnet], count: int) -> list[Subnet]:
                return [subnets[row] for row in np.argsort(-predictor(subnets), kind="stable")[:count]]

            children = dict.fromkeys(promising(space, scores, parents, best, feasible, rng, config.population))
        elif parents:
            children = offspring(space, parents, scores, feasible, rng, config)
        fill_up(children, space, scores, feasible, rng, config.population)
        return list(children)

    return run_generations(propose, evaluate, config.generations, progress)


def beginning(space: SearchSpace, feasible: Feasible, most: int, first: Sequence[Subnet], *, predict: bool) -> list[Subnet]:
    """Returns the chosen part of a first generation: the first legal ones of some subnets, and shapes that a predictor needs."""
    legal = feasible(SubnetBatch.from_subnets(first)) if first else ()
    chosen = [subnet for subnet, fits in zip(first, legal, strict=True) if fits][:most]
    return [*chosen, *legal_shapes(space, feasible, most)] if predict else chosen


def run_generations(
    propose: Callable[[Mapping[Subnet, Score]], Sequence[Subnet]],
    evaluate: Callable[[Sequence[Subnet]], Sequence[Score]],
    generations: int,
    progress: Progress,
) -> EvolutionResult:
    """Evaluates one generation after the other. Ends early if there is no new subnet.

    Args:
        propose: returns the next generation, given all evaluated subnets and their scores, best first.
        evaluate: as for :func:`evolve`.
        generations: number of generations.
        progress: receives each :class:`GenerationResult` as an event.
    """
    ranked: tuple[tuple[Subnet, Score], ...] = ()
    history: list[GenerationResult] = []
    for number in range(1, generations + 1):
        children = propose(dict(ranked))
        if not children:
            break
        generation = list(zip(children, evaluate(children), strict=True))
        ranked = _best_first([*ranked, *generation])
        history.append(GenerationResult(number, _best_first(generation), ranked[0]))
        progress.event(history[-1])
    return EvolutionResult(ranked, tuple(history))


def _best_first(scored: Iterable[tuple[Subnet, Score]]) -> tuple[tuple[Subnet, Score], ...]:
    # Sorting is stable, so equal scores stay in the order of evaluation.
    return tuple(sorted(scored, key=lambda item: item[1], reverse=True))


def offspring(
    space: SearchSpace,
    parents: Sequence[Subnet],
    seen: Container[Subnet],
    feasible: Feasible,
    rng: Generator,
    config: EvolutionConfig,
) -> dict[Subnet, None]:
    """Returns a population of new legal subnets, half by mutation and half by crossover; fewer if too many tries fail."""
    children: dict[Subnet, None] = {}

    def pick() -> Subnet:
        return parents[int(rng.integers(len(parents)))]

    half = config.population - config.population // 2
    breed(children, lambda: mutate(space, pick(), rng, config.mutation_probability), half, seen, feasible)
    breed(children, lambda: crossover(pick(), pick(), rng), config.population - half, seen, feasible)
    return children


def breed(
    children: dict[Subnet, None], make: Callable[[], Subnet], count: int, seen: Container[Subnet], feasible: Feasible
) -> None:
    """Adds ``count`` new legal subnets from ``make`` to ``children``; fewer if too many tries fail."""
    target = len(children) + count
    for _ in range(_ATTEMPTS * count):
        if len(children) >= target:
            return
        child = make()
        if child not in seen and child not in children and feasible(SubnetBatch.from_subnets([child]))[0]:
            children[child] = None


def fill_up(
    children: dict[Subnet, None],
    space: SearchSpace,
    seen: Mapping[Subnet, object],
    feasible: Feasible,
    rng: Generator,
    size: int,
) -> None:
    """Adds new random legal subnets to ``children`` until there are ``size``; fewer if no more are found.

    Raises:
        LimitError: no subnet is legal.
    """
    for _ in range(_RANDOM_ROUNDS):
        missing = size - len(children)
        if not missing:
            break
        # Extra draws cost almost nothing and help to find the last few new subnets of a small space.
        draws = sample_feasible(space, missing if not seen else max(missing, _RANDOM_DRAWS), rng, feasible)
        new = [subnet for subnet in dict.fromkeys(draws) if subnet not in seen and subnet not in children]
        children.update(dict.fromkeys(new[:missing]))
