"""Scores of subnets for an evolution, from the journal where it has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from growtas.costs import count_costs
from growtas.search.journal import Evaluation, Journal
from growtas.space import SearchSpace
from growtas.subnet import Subnet

Score = tuple[float, float, int]
"""Accuracy; among equals the lower loss, then fewer parameters: higher is better in all three entries."""

Evaluate = Callable[[Sequence[Subnet]], Iterable[tuple[Subnet, Evaluation]]]
"""Evaluates subnets, in any order; see :class:`growtas.search.evaluate.SubnetEvaluator`."""


class Scorer:
    """Scores of subnets, from the journal where it has them; what is evaluated is journalled at once.

    Args:
        space: for the costs.
        evaluate: evaluates what the journal does not have.
        journal: where evaluations are kept.
        on_evaluation: called with each subnet, its evaluation, and whether the journal had it.
    """

    def __init__(
        self,
        space: SearchSpace,
        evaluate: Evaluate,
        journal: Journal,
        on_evaluation: Callable[[Subnet, Evaluation, bool], None] | None = None,
    ) -> None:
        self._space, self._evaluate, self._journal = space, evaluate, journal
        self._on_evaluation = on_evaluation or (lambda subnet, evaluation, reused: None)
        self.evaluated = self.reused = 0

    def __call__(self, subnets: Sequence[Subnet]) -> list[Score]:
        """Scores, in the order of the subnets."""
        known = {subnet: evaluation for subnet in subnets if (evaluation := self._journal.get(subnet)) is not None}
        for subnet, evaluation in known.items():
            self.reused += 1
            self._on_evaluation(subnet, evaluation, True)
        for subnet, evaluation in self._evaluate([subnet for subnet in subnets if subnet not in known]):
            costs = count_costs(self._space, subnet)
            self._journal.record(subnet, evaluation, params=costs.params, macs=costs.macs)
            self.evaluated += 1
            known[subnet] = evaluation
            self._on_evaluation(subnet, evaluation, False)
        return [self._score(subnet, known[subnet]) for subnet in subnets]

    def _score(self, subnet: Subnet, evaluation: Evaluation) -> Score:
        return evaluation.accuracy, -evaluation.loss, -count_costs(self._space, subnet).params
