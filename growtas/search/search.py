"""A whole search: the evolution under limits, and then the choice of a subnet or front, with measurements on devices at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from growtas.batch import SubnetBatch
from growtas.costs import count_costs
from growtas.errors import LimitError
from growtas.progress import SILENT, Progress
from growtas.sampling import Feasible
from growtas.search.evolution import EvolutionConfig, EvolutionResult, evolve
from growtas.search.finalists import SearchedSubnet, choose
from growtas.search.journal import Conversion
from growtas.search.limits import Limits
from growtas.search.pareto import Axis, axis_costs, cost_axes, evolve_front, front_numbers, non_dominated
from growtas.search.precision import ConvertedScorer
from growtas.search.precision_front import PrecisionFront, Variant, precision_front
from growtas.search.scoring import DROPPED, Score
from growtas.search.targets import Target
from growtas.space import SearchSpace
from growtas.subnet import Subnet


@dataclass
class Spent:
    """Time that a search spent on each activity, in seconds.

    Attributes:
        evaluation: evaluating subnets in the supernet, including the journal.
        sampling: drawing subnets, computing their costs, predicting and ranking them.
        measuring: measuring finalists, and scoring them in the precisions of the export.
    """

    evaluation: float = 0.0
    sampling: float = 0.0
    measuring: float = 0.0


FRONT_JSON = """``front.json``: the subnets that no other evaluated one beats on every axis.

Fields:
    evaluated (whole number): Subnets that were evaluated. Absent where a front of one device is drawn over precisions.
    subnets (list): The front, by rising first cost.
    subnets[].subnet (object): The subnet, as in a subnet's file.
    subnets[].accuracy (number): Top-1 accuracy on the search split, 0 to 1, in the point's precision.
    subnets[].accuracy_standard_error (number or null): Standard error of that accuracy, 0 to 1; null in a replay.
    subnets[].params (whole number): Parameters.
    subnets[].macs (whole number): Multiply-accumulates for one image.
    subnets[].latencies (list): The latency on each device, as in ``result.json``.
"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a search.

    Attributes:
        chosen: the best subnet that meets the limits.
        result: all evaluated subnets, and the generations.
        spent: time spent on each activity.
        front: front over subnets and precisions; None unless the search has several precisions.
    """

    chosen: SearchedSubnet
    result: EvolutionResult
    spent: Spent
    front: PrecisionFront | None = None


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search and its limits.

    Args:
        space: the search space.
        limits: limits that need no device. Call :meth:`growtas.search.limits.Limits.check` first for a better error message.
        targets: the devices; the chosen subnet meets the limits of all of them.
        front: axes of a front, such as ``("accuracy", "latency")``; empty for the paper's search for accuracy.
        ships: conversion of the chosen subnet for each target (a single one without targets); None, or an empty tuple, means fp32.
        variants: the targets as one device in several precisions, each with its own points on a front. A subnet then has to meet
            the limit in one of them only.
        predictor: whether predicted accuracies choose the subnets to evaluate, if :attr:`wants_every_accuracy`
            (:mod:`growtas.search.accuracy_predictor`).
        first: subnets for the first generation, best first.
    """

    space: SearchSpace
    limits: Limits
    targets: tuple[Target, ...] = ()
    front: tuple[str, ...] = ()
    ships: tuple[Conversion | None, ...] = ()
    variants: tuple[Variant, ...] = ()
    predictor: bool = False
    first: tuple[Subnet, ...] = ()

    @property
    def wants_every_accuracy(self) -> bool:
        """Whether every subnet must be evaluated in full: for a front, and if finalists may miss a measured limit.

        After a miss the next best subnet is measured, so its accuracy must be known.
        """
        return bool(self.front) or any(target.stopwatch and target.max_ms is not None for target in self.targets)

    @property
    def predicts(self) -> bool:
        """Whether predicted accuracies choose the subnets to evaluate."""
        return self.predictor and self.wants_every_accuracy

    def feasible(self) -> Feasible:
        """Returns the predicate of all limits."""
        limits, targets = self.limits.feasible(self.space), [target.feasible(self.space) for target in self.targets]
        combine = np.logical_or if self.variants else np.logical_and
        if not targets:
            return limits
        return lambda batch: limits(batch) & combine.reduce([target(batch) for target in targets])

    def axes(self) -> list[Axis]:
        """Returns the cost axes of the front; an empty list without a front."""
        return cost_axes(self.space, self.targets, self.front, self._highest())

    def _highest(self) -> dict[str, int | None]:
        return {"params": self.limits.max_params, "macs": self.limits.max_macs}

    def run(
        self,
        scorer: Callable[[Sequence[Subnet]], Sequence[Score]],
        config: EvolutionConfig,
        seed: int,
        progress: Progress = SILENT,
        converted: ConvertedScorer | None = None,
    ) -> Outcome:
        """Searches, then chooses the subnet with the best score that meets the limits, measured on devices at hand.

        Args:
            scorer: scores subnets.
            config: settings of the evolution.
            seed: seed of the search.
            progress: receives the events of :func:`growtas.search.evolution.evolve` and the stages of :meth:`choose`.
            converted: scores converted subnets.

        Raises:
            LimitError: no subnet is legal.
            MissingExtra: a front needs pymoo.
        """
        progress.stage("searching", config.generations * config.population)
        spent, start, rng = Spent(), time.perf_counter(), np.random.default_rng(seed)

        def timed(subnets: Sequence[Subnet]) -> Sequence[Score]:
            begun = time.perf_counter()
            scores = scorer(subnets)
            spent.evaluation += time.perf_counter() - begun
            return scores

        if axes := self.axes():
            search = partial(evolve_front, self.space, timed, partial(axis_costs, axes))
        else:
            search = partial(evolve, self.space, timed)
        result = search(self.feasible(), rng, config, progress, predict=self.predicts, first=self.first)
        spent.sampling = time.perf_counter() - start - spent.evaluation
        return self.choose(result, scorer, spent, progress, converted)

    def choose(
        self,
        result: EvolutionResult,
        scorer: Callable[[Sequence[Subnet]], Sequence[Score]],
        spent: Spent | None = None,
        progress: Progress = SILENT,
        converted: ConvertedScorer | None = None,
    ) -> Outcome:
        """Chooses among the evaluated subnets and measures finalists on devices at hand; see :func:`choose`.

        With several precisions it first computes the front. Then it chooses the most accurate subnet in each precision, and the
        best of these.
        """
        spent, start = spent or Spent(), time.perf_counter()
        front = None
        if not self.variants:
            chosen = choose(
                self.space, self.limits, self.targets, result.ranked, scorer, progress, ships=self.ships, converted=converted
            )
        else:
            assert converted is not None
            known = [(subnet, score[0]) for subnet, score in result.ranked if score[0] != DROPPED]
            front = precision_front(self.space, self.variants, self.front, self._highest(), known, converted)
            chosen = self._choose_variant(result, scorer, converted, progress)
        spent.measuring = time.perf_counter() - start
        return Outcome(chosen=chosen, result=result, spent=spent, front=front)

    def _choose_variant(
        self,
        result: EvolutionResult,
        scorer: Callable[[Sequence[Subnet]], Sequence[Score]],
        converted: ConvertedScorer,
        progress: Progress,
    ) -> SearchedSubnet:
        """Returns the most accurate subnet in any of the precisions; among equals the faster one."""
        batch = SubnetBatch.from_subnets([subnet for subnet, _ in result.ranked])
        candidates, missed = list[tuple[float, float, SearchedSubnet]](), list[LimitError]()
        for variant in self.variants:
            if variant.unscored_because:
                continue
            legal = variant.target.feasible(self.space)(batch)
            ranked = [item for item, within in zip(result.ranked, legal, strict=True) if within]
            ships, targets = (variant.conversion,), (variant.target,)
            try:
                chosen = choose(self.space, self.limits, targets, ranked, scorer, progress, ships=ships, converted=converted)
            except LimitError as error:
                missed.append(error)
                continue
            if (accuracy := chosen.accuracy_in(variant.conversion)) is not None:
                candidates.append((accuracy, -(chosen.latency.ms if chosen.latency else 0.0), chosen))
        if not candidates:
            raise missed[0] if missed else LimitError("no subnet was scored in any of the precisions")
        return max(candidates, key=lambda item: item[:2])[-1]

    def front_report(self, result: EvolutionResult) -> dict[str, Any]:
        """Returns the content of ``front.json``. Measures nothing, but includes latencies that are already measured.

        Args:
            result: all evaluated subnets of a search with a front.
        """
        axes, ranked = self.axes(), [item for item in result.ranked if item[1][0] != DROPPED]
        costs = axis_costs(axes, SubnetBatch.from_subnets([subnet for subnet, _ in ranked]))
        accuracies = np.array([score[0] for _, score in ranked])
        rows = np.flatnonzero(non_dominated(np.column_stack([-accuracies, costs])))
        rows = rows[np.argsort(costs[rows, 0], kind="stable")]
        return {
            **front_numbers(axes, accuracies[rows], costs[rows]),
            "evaluated": len(ranked),
            "subnets": [
                {
                    "subnet": subnet.to_dict(),
                    "accuracy": score[0],
                    **asdict(count_costs(self.space, subnet)),
                    "latencies": [target.latency(subnet, measure=False).to_dict() for target in self.targets],
                }
                for subnet, score in (ranked[row] for row in rows)
            ],
        }
