"""The paper's evolutionary search (Section 3.3): mutation and crossover of the best, under hard limits.

Pure: what a subnet is worth, which are legal and where randomness comes from are arguments.
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
"""Tries a child before random subnets fill the population, as in AutoFormer."""
_RANDOM_ROUNDS = 4
_RANDOM_DRAWS = 1024
_COUNT = Rule(whole(1).accepts, "a whole number above zero")


@dataclass(frozen=True, kw_only=True)
class EvolutionConfig:
    """The paper's settings (Section 3.3).

    Attributes:
        generations: the first one is random.
        population: new subnets a generation, half by mutation and half by crossover.
        parents: the best subnets so far, from which children are made.
        mutation_probability: of each gene.
    """

    generations: int = checked(20, _COUNT)
    population: int = checked(50, _COUNT)
    parents: int = checked(10, _COUNT)
    mutation_probability: float = checked(0.2, Rule(real(0, 1, above=True).accepts, "above 0 and at most 1"))

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class GenerationResult:
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
class EvolutionResult:
    """What an evolution found.

    Attributes:
        ranked: every evaluated subnet with its score, best first; equal scores in the order of evaluation.
        history: the generations; fewer than asked where no new legal subnet was left.
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
) -> EvolutionResult:
    """Search a space; no subnet is evaluated twice, and none that breaks a limit.

    Args:
        evaluate: scores of subnets, in their order; higher is better.
        feasible: the monotone predicate of the limits.
        rng: the only source of randomness: the same seed gives the same search.
        progress: gets each :class:`GenerationResult` as an event.
        predict: from the second generation on, evaluate those whose accuracy is predicted to be best
            (:mod:`growtas.search.accuracy_predictor`); every subnet must be evaluated in full.

    Raises:
        LimitError: no subnet is legal.
    """
    config = config or EvolutionConfig()

    def propose(scores: Mapping[Subnet, Score]) -> list[Subnet]:
        children: dict[Subnet, None] = {}
        parents = list(scores)[: config.parents]

        def pick() -> Subnet:
            return parents[int(rng.integers(len(parents)))]

        if predict and not parents:
            children = dict.fromkeys(legal_shapes(space, feasible, config.population // 2))
        elif predict:
            predictor = AccuracyPredictor(space, list(scores), [score[0] for score in scores.values()])

            def best(subnets: Sequence[Subnet], count: int) -> list[Subnet]:
                return [subnets[row] for row in np.argsort(-predictor(subnets), kind="stable")[:count]]

            children = dict.fromkeys(promising(space, scores, parents, best, feasible, rng, config.population))
        elif parents:
            half = config.population - config.population // 2
            breed(children, lambda: mutate(space, pick(), rng, config.mutation_probability), half, scores, feasible)
            breed(children, lambda: crossover(pick(), pick(), rng), config.population - half, scores, feasible)
        fill_up(children, space, scores, feasible, rng, config.population)
        return list(children)

    return run_generations(propose, evaluate, config.generations, progress)


def run_generations(
    propose: Callable[[Mapping[Subnet, Score]], Sequence[Subnet]],
    evaluate: Callable[[Sequence[Subnet]], Sequence[Score]],
    generations: int,
    progress: Progress,
) -> EvolutionResult:
    """Evaluates one generation after the other; ends early where there is no new subnet.

    Args:
        propose: makes a generation from all evaluated subnets with their scores, which come best first.
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
    # Sorting is stable: among equals, whoever was evaluated first stays ahead.
    return tuple(sorted(scored, key=lambda item: item[1], reverse=True))


def breed(
    children: dict[Subnet, None], make: Callable[[], Subnet], count: int, seen: Container[Subnet], feasible: Feasible
) -> None:
    """Adds ``count`` new legal subnets from ``make`` to ``children``; fewer where too many tries give none."""
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
    seen: Mapping[Subnet, Score],
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
        new = [subnet for subnet in dict.fromkeys(draws) if subnet not in seen and subnet not in children]
        children.update(dict.fromkeys(new[:missing]))
