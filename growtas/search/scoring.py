"""Scores subnets for an evolution, and reuses evaluations in the journal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from growtas.costs import count_costs
from growtas.progress import SILENT, Progress
from growtas.search.evaluation.racing import Racing
from growtas.search.journal import Evaluation, Journal
from growtas.space import SearchSpace
from growtas.subnet import Subnet

Score = tuple[float, float, int]
"""Accuracy, negative loss and negative number of parameters. Higher is better in all three; later entries decide between equals."""

DROPPED = -1.0
"""Accuracy in the score of a subnet that was dropped from a race; lower than that of every complete evaluation."""

Evaluate = Callable[..., Iterable[tuple[Subnet, Evaluation]]]
"""Evaluates a sequence of subnets in any order. An optional second argument is a race (:mod:`growtas.search.evaluation.racing`).
See :class:`growtas.search.evaluation.evaluator.SubnetEvaluator`."""


@dataclass(frozen=True)
class Evaluated:
    """Event: a subnet was evaluated.

    Attributes:
        subnet: the subnet.
        evaluation: its evaluation on the search split; if it is not ``complete``, the subnet was dropped from a race.
        reused: whether the evaluation comes from the journal.
    """

    subnet: Subnet
    evaluation: Evaluation
    reused: bool


class Scorer:
    """Scores subnets, and reuses evaluations in the journal. New evaluations are written to it immediately.

    Args:
        space: the search space.
        evaluate: evaluates subnets that the journal does not contain.
        journal: the journal of evaluations.
        racing: drops candidates that can't become parents; None evaluates all subnets in full. No other scorer may use it.
        progress: advances with every subnet and receives an event :class:`Evaluated`.

    Attributes:
        evaluated: number of subnets evaluated in full.
        dropped: number of subnets dropped from a race.
        reused: number of subnets whose evaluation came from the journal.
    """

    def __init__(
        self,
        space: SearchSpace,
        evaluate: Evaluate,
        journal: Journal,
        racing: Racing | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self._space, self._evaluate, self._journal, self._racing, self._progress = space, evaluate, journal, racing, progress
        self.evaluated = self.dropped = self.reused = 0

    def __call__(self, subnets: Sequence[Subnet]) -> list[Score]:
        """Returns the scores in the order of the subnets. With racing, subnets compete with those of earlier calls."""
        race = self._racing.race() if self._racing else None
        needed = race.needed if race else None
        known = {subnet: recorded for subnet in subnets if (recorded := self._journal.get(subnet, needed)) is not None}
        self.reused += len(known)
        for subnet, evaluation in known.items():
            self._report(Evaluated(subnet, evaluation, reused=True))
        against: tuple[Any, ...] = (race,) if race else ()
        for subnet, evaluation in self._evaluate([subnet for subnet in subnets if subnet not in known], *against):
            self._journal.record(subnet, evaluation, needed=needed, **asdict(count_costs(self._space, subnet)))
            self.evaluated += evaluation.complete
            self.dropped += not evaluation.complete
            known[subnet] = evaluation
            self._report(Evaluated(subnet, evaluation, reused=False))
        if self._racing:
            for subnet in subnets:
                self._racing.add(known[subnet])
        return [self._score(subnet, known[subnet]) for subnet in subnets]

    def _report(self, evaluated: Evaluated) -> None:
        self._progress.event(evaluated)
        self._progress.advance()

    def _score(self, subnet: Subnet, evaluation: Evaluation) -> Score:
        params = -count_costs(self._space, subnet).params
        return (evaluation.accuracy, -evaluation.loss, params) if evaluation.complete else (DROPPED, -math.inf, params)
