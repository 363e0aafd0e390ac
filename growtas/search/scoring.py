"""Scores of subnets for an evolution, from the journal where it has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from growtas.costs import count_costs
from growtas.search.evaluation.racing import Race, Racing
from growtas.search.journal import Evaluation, Journal
from growtas.space import SearchSpace
from growtas.subnet import Subnet

Score = tuple[float, float, int]
"""Accuracy; among equals the lower loss, then fewer parameters: higher is better in all three entries."""

DROPPED = -1.0
"""Stands for the accuracy in the score of a subnet that was dropped from a race: below that of every complete evaluation."""

Evaluate = Callable[..., Iterable[tuple[Subnet, Evaluation]]]
"""Evaluates a sequence of subnets, in any order; in a race (:mod:`growtas.search.evaluation.racing`) where a second argument
gives one. See :class:`growtas.search.evaluation.evaluator.SubnetEvaluator`."""


class Scorer:
    """Scores of subnets, from the journal where it has them; what is evaluated is journalled at once.

    Args:
        space: for the costs.
        evaluate: evaluates what the journal does not have.
        journal: where evaluations are kept.
        on_evaluation: called with each subnet, its evaluation, and whether the journal had it. An evaluation that is not
            ``complete`` was dropped from a race.
        racing: drops candidates that can't become parents; None evaluates all of them in full. Its own to this scorer.

    Attributes:
        evaluated, dropped, reused: subnets evaluated in full, dropped from a race, and answered by the journal.
    """

    def __init__(
        self,
        space: SearchSpace,
        evaluate: Evaluate,
        journal: Journal,
        on_evaluation: Callable[[Subnet, Evaluation, bool], None] | None = None,
        racing: Racing | None = None,
    ) -> None:
        self._space, self._evaluate, self._journal, self._racing = space, evaluate, journal, racing
        self._on_evaluation = on_evaluation or (lambda subnet, evaluation, reused: None)
        self.evaluated = self.dropped = self.reused = 0

    def __call__(self, subnets: Sequence[Subnet]) -> list[Score]:
        """Scores, in the order of the subnets. With racing, subnets compete with those of earlier calls."""
        known = self._find(subnets, self._racing.race() if self._racing else None)
        if self._racing:
            for subnet in subnets:
                self._racing.add(known[subnet])
        return [self._score(subnet, known[subnet]) for subnet in subnets]

    def _find(self, subnets: Sequence[Subnet], race: Race | None) -> dict[Subnet, Evaluation]:
        needed = race.needed if race else None
        known = {subnet: found for subnet in subnets if (found := self._journal.get(subnet, needed)) is not None}
        for subnet, evaluation in known.items():
            self.reused += 1
            self._on_evaluation(subnet, evaluation, True)
        against: tuple[Any, ...] = (race,) if race else ()
        for subnet, evaluation in self._evaluate([subnet for subnet in subnets if subnet not in known], *against):
            costs = count_costs(self._space, subnet)
            self._journal.record(subnet, evaluation, needed=needed, params=costs.params, macs=costs.macs)
            self.evaluated += evaluation.complete
            self.dropped += not evaluation.complete
            known[subnet] = evaluation
            self._on_evaluation(subnet, evaluation, False)
        return known

    def _score(self, subnet: Subnet, evaluation: Evaluation) -> Score:
        params = -count_costs(self._space, subnet).params
        return (evaluation.accuracy, -evaluation.loss, params) if evaluation.complete else (DROPPED, -math.inf, params)
