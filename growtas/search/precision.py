"""Accuracy of subnets in the precisions that ship.

An evolution scores subnets in fp32, as the supernet computes. What ships in int8 may rank otherwise: rounding costs some subnets
more than others. So the best of them are converted as an export converts them and scored on the same images, and the choice goes by
what they score then. Another room converts (:mod:`growtas.api.search_precision`); here it is asked for, journalled and ranked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from growtas.progress import SILENT, Progress
from growtas.search.journal import Conversion, Evaluation, Journal
from growtas.search.rerank import Recorded
from growtas.search.scoring import DROPPED, Score
from growtas.subnet import Subnet

FINALISTS = 8
"""Subnets that are scored in the precision that ships, the best ones in fp32: fewer than the evolution's parents, which are all
evaluated in full."""

Accuracies = Mapping[Conversion, Evaluation]
"""A subnet's evaluation in each precision that it was converted to."""
Convert = Callable[[Subnet, Sequence[Conversion]], Iterable[Evaluation]]
"""Converts a subnet and evaluates it in each of the precisions, in their order."""


class ConvertedScorer:
    """Scores subnets in the precisions that ship, from the journal where it has them.

    Args:
        journal: where evaluations are kept; of a :class:`growtas.search.rerank.Recorded` nothing else counts.
        convert: converts and evaluates what the journal does not have.
        progress: a stage for what is converted, which advances with every subnet.
    """

    def __init__(self, journal: Journal | Recorded, convert: Convert | None = None, progress: Progress = SILENT) -> None:
        self._journal, self._convert, self._progress = journal, convert, progress

    def __call__(self, subnets: Sequence[Subnet], conversions: Sequence[Conversion]) -> list[Accuracies]:
        """The accuracies of each subnet, those that are recorded where nothing may be evaluated."""
        wanted, recorded = list(dict.fromkeys(conversions)), self._journal.converted
        known = [{c: recorded[subnet, c] for c in wanted if (subnet, c) in recorded} for subnet in subnets]
        missing = [row for row, accuracies in enumerate(known) if len(accuracies) < len(wanted)]
        if self._convert is None or not isinstance(self._journal, Journal) or not missing:
            return list(known)
        names = ", ".join(dict.fromkeys(conversion.precision for conversion in wanted))
        self._progress.stage(f"scoring subnets in {names}", len(missing))
        for row in missing:
            absent = [conversion for conversion in wanted if conversion not in known[row]]
            for conversion, evaluation in zip(absent, self._convert(subnets[row], absent), strict=True):
                self._journal.record_converted(subnets[row], conversion, evaluation)
                known[row][conversion] = evaluation
            self._progress.advance()
        return list(known)


class Ranking:
    """Which of the evaluated subnets is the next best to choose: by accuracy in the precisions that ship.

    Args:
        ships: what the chosen subnet is converted to, one a target; None is fp32. Of several the lowest accuracy counts.
        scorer: of converted subnets.

    Attributes:
        accuracies: of every subnet that was looked at.
        by: the precisions whose accuracy decided; ``("fp32",)`` where those of a replay are not all recorded.
    """

    def __init__(self, ships: Sequence[Conversion | None], scorer: ConvertedScorer | None) -> None:
        self._scorer = scorer
        self._ships = tuple(dict.fromkeys(ships)) or (None,)
        self._conversions = [conversion for conversion in self._ships if conversion is not None]
        self.accuracies: dict[Subnet, Accuracies] = {}
        self.by: tuple[str, ...] = ("fp32",)

    def best(self, ranked: Sequence[tuple[Subnet, Score]]) -> int:
        """The row of the best subnet, among the first :data:`FINALISTS` by their score in fp32."""
        if not self._conversions or self._scorer is None:
            return 0
        rows = [row for row, (_, score) in enumerate(ranked[:FINALISTS]) if score[0] != DROPPED]
        self.look_at([ranked[row][0] for row in rows])
        if not all(len(self.accuracies[ranked[row][0]]) == len(self._conversions) for row in rows):
            self.by = ("fp32",)
            return 0
        self.by = tuple(dict.fromkeys("fp32" if conversion is None else conversion.precision for conversion in self._ships))
        return max(rows, key=lambda row: self.score(*ranked[row]), default=0)

    def look_at(self, subnets: Sequence[Subnet]) -> None:
        """Scores subnets in the precisions that ship."""
        if self._conversions and self._scorer is not None:
            self.accuracies |= zip(subnets, self._scorer(subnets, self._conversions), strict=True)

    def score(self, subnet: Subnet, fp32: Score) -> Score:
        """The lowest of a subnet's scores in what ships; its score in fp32 where that is not known."""
        known = self.accuracies.get(subnet, {})
        scores = [
            fp32 if conversion is None else (known[conversion].accuracy, -known[conversion].loss, fp32[2])
            for conversion in self._ships
            if conversion is None or conversion in known
        ]
        return min(scores, default=fp32)


def accuracies_dict(accuracies: Accuracies) -> list[dict[str, Any]]:
    """The JSON form: an entry a precision and runtime."""
    return [
        {"precision": conversion.precision, "runtime": conversion.runtime, "accuracy": evaluation.accuracy, "loss": evaluation.loss}
        for conversion, evaluation in accuracies.items()
    ]
