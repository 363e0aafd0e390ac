"""Ranks subnets by their accuracy in the precisions of the export.

An evolution scores subnets in fp32, the precision of the supernet. In int8 they may rank differently, because rounding costs some
subnets more accuracy than others. So the best subnets are converted in the same way as by an export and evaluated on the same
images, and these accuracies decide. :mod:`growtas.api.search_precision` converts and evaluates; this module records and ranks.
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
"""Number of subnets, best in fp32 first, that are scored in the precisions of the export. It is smaller than the evolution's number
of parents, because only parents are certain to be evaluated in full."""

Accuracies = Mapping[Conversion, Evaluation]
"""Evaluations of a subnet by conversion."""
Convert = Callable[[Subnet, Sequence[Conversion]], Iterable[Evaluation]]
"""Function that converts a subnet and evaluates it after each conversion, in the given order."""


class ConvertedScorer:
    """Scores subnets in the precisions of the export, and reuses evaluations in the journal.

    Args:
        journal: the journal of evaluations. With a :class:`growtas.search.rerank.Recorded`, nothing is evaluated.
        convert: converts and evaluates a subnet that the journal does not contain; None evaluates nothing.
        progress: receives a stage that advances with every converted subnet.
    """

    def __init__(self, journal: Journal | Recorded, convert: Convert | None = None, progress: Progress = SILENT) -> None:
        self._journal, self._convert, self._progress = journal, convert, progress

    def __call__(self, subnets: Sequence[Subnet], conversions: Sequence[Conversion]) -> list[Accuracies]:
        """Returns the evaluations of each subnet; only the recorded ones if nothing may be evaluated."""
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
    """Finds the best of the evaluated subnets by their accuracy in the precisions of the export.

    Args:
        ships: conversion of the chosen subnet for each target; None means fp32. With several, the lowest accuracy counts.
        scorer: scores converted subnets.

    Attributes:
        accuracies: evaluations of all subnets that were considered.
        by: the precisions whose accuracy decided; ``("fp32",)`` if a replay lacks some of the recorded accuracies.
    """

    def __init__(self, ships: Sequence[Conversion | None], scorer: ConvertedScorer | None) -> None:
        self._scorer = scorer
        self._ships = tuple(dict.fromkeys(ships)) or (None,)
        self._conversions = [conversion for conversion in self._ships if conversion is not None]
        self.accuracies: dict[Subnet, Accuracies] = {}
        self.by: tuple[str, ...] = ("fp32",)

    def best(self, ranked: Sequence[tuple[Subnet, Score]]) -> int:
        """Returns the row of the best subnet among the first :data:`FINALISTS` of ``ranked``, which is sorted by fp32 scores."""
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
        """Scores subnets in the precisions of the export."""
        if self._conversions and self._scorer is not None:
            self.accuracies |= zip(subnets, self._scorer(subnets, self._conversions), strict=True)

    def score(self, subnet: Subnet, fp32: Score) -> Score:
        """Returns the lowest of a subnet's scores in the precisions of the export; its fp32 score if none is known."""
        known = self.accuracies.get(subnet, {})
        scores = [
            fp32 if conversion is None else (known[conversion].accuracy, -known[conversion].loss, fp32[2])
            for conversion in self._ships
            if conversion is None or conversion in known
        ]
        return min(scores, default=fp32)


def accuracies_dict(accuracies: Accuracies) -> list[dict[str, Any]]:
    """Returns the JSON form: one entry per precision and runtime."""
    return [
        {"precision": conversion.precision, "runtime": conversion.runtime, "accuracy": evaluation.accuracy, "loss": evaluation.loss}
        for conversion, evaluation in accuracies.items()
    ]
