"""Re-ranks the recorded evaluations of a search under new limits. Evaluates nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch
from growtas.errors import CheckpointError, LimitError, UsageError
from growtas.files import read_json_lines
from growtas.sampling import Feasible
from growtas.search.evolution import EvolutionResult
from growtas.search.journal import Converted, Evaluation, parse_evaluations
from growtas.search.scoring import Score
from growtas.space import SearchSpace
from growtas.subnet import Subnet

ENOUGH = 50
"""Number of legal subnets from which a choice is meaningful: one generation in the paper."""


@dataclass(frozen=True)
class Recorded:
    """Recorded evaluations of one checkpoint on one set of images.

    Attributes:
        path: the run's own journal.
        evaluations: all subnets that were evaluated in full, in the order of evaluation, with those of other journals last.
        data_fingerprint: digest of the images; with several sets of images, that of the last search.
        lent: number of evaluations from each of the other journals.
        converted: evaluations in the precisions of the export.
    """

    path: Path
    evaluations: dict[Subnet, Evaluation]
    data_fingerprint: str
    lent: Mapping[Path, int] = field(default_factory=dict)
    converted: Converted = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, checkpoint_sha256: str, others: Iterable[Path] = ()) -> Recorded:
        """Reads journals without changing them. Ignores an incomplete last line.

        Args:
            path: the run's own journal.
            checkpoint_sha256: hash of the checkpoint.
            others: further journals with complete evaluations of the same checkpoint on the same images. The first journal that
                contains the checkpoint determines the images. An unreadable one counts as empty.

        Raises:
            UsageError: there is no journal, or none contains this checkpoint.
            CheckpointError: a line of the run's own journal is invalid.
        """
        journals: dict[Path, list[Any]] = {}
        if path.is_file():
            journals[path] = _lines(path)
        for other in others:
            if other.resolve() != path.resolve() and other.is_file():
                with contextlib.suppress(CheckpointError):
                    journals[other] = _lines(other)
        if not journals:
            raise UsageError(f"{path}: there is no journal to replay; search without --replay first")
        entries = (line for lines in journals.values() for line in reversed(lines))
        header = next((e for e in entries if e["type"] == "header" and e["checkpoint_sha256"] == checkpoint_sha256), None)
        if header is None:
            raise UsageError(f"{path}: the journal has no entries for the run's newest checkpoint; search without --replay first")
        evaluations, lent, converted = dict[Subnet, Evaluation](), dict[Path, int](), Converted()
        for journal, lines in journals.items():
            try:
                known, _, held = parse_evaluations(journal, lines, header["key"])
            except CheckpointError:
                if journal == path:
                    raise _no_journal(path) from None
                continue
            new = {subnet: evaluation for subnet, evaluation in known.items() if subnet not in evaluations}
            evaluations |= new
            converted = held | converted
            if journal != path and new:
                lent[journal] = len(new)
        return cls(path, evaluations, str(header["data_fingerprint"]), lent, converted)

    def scores(self, space: SearchSpace) -> dict[Subnet, Score]:
        """Returns the scores of all recorded subnets that are choices of the space."""
        subnets = [subnet for subnet in self.evaluations if space.holds(subnet)]
        if not subnets:
            return {}
        params, _ = count_costs_batch(space, SubnetBatch.from_subnets(subnets))
        known = [self.evaluations[subnet] for subnet in subnets]
        return {s: (e.accuracy, -e.loss, -int(count)) for s, e, count in zip(subnets, known, params, strict=True)}

    def ranked(self, space: SearchSpace, feasible: Feasible) -> EvolutionResult:
        """Returns the recorded subnets that meet the limits, best first.

        Raises:
            LimitError: no recorded subnet meets them.
        """
        scores = self.scores(space)
        legal = feasible(SubnetBatch.from_subnets(list(scores))).tolist() if scores else list[bool]()
        candidates = [item for item, is_legal in zip(scores.items(), legal, strict=True) if is_legal]
        if not candidates:
            more = " and other journals of the run" if self.lent else ""
            raise LimitError(
                f"none of the {len(scores)} subnets in {self.path}{more} meets the limits; "
                "search without --replay to evaluate more subnets"
            )
        return EvolutionResult(tuple(sorted(candidates, key=lambda item: item[1], reverse=True)), ())


def _lines(path: Path) -> list[Any]:
    try:
        lines = read_json_lines(path)
        for line in lines:
            if line["type"] == "header" and not line.keys() >= {"checkpoint_sha256", "key", "data_fingerprint"}:
                raise _no_journal(path)
    except (KeyError, TypeError, AttributeError, OSError, UnicodeDecodeError):
        raise _no_journal(path) from None
    return lines


def _no_journal(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: this is not a search journal; move the file away to start again")
