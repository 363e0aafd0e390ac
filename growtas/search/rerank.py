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
"""Legal subnets from which a choice is worth something: a generation of the paper's."""


@dataclass(frozen=True)
class Recorded:
    """What journals know of one checkpoint on one set of images.

    Attributes:
        path: the journal that was asked for.
        evaluations: every subnet that was evaluated in full, in the order of evaluation, those of other journals last.
        data_fingerprint: the images; of several sets the one of the last search.
        lent: how many of the evaluations are from which other journal.
        converted: the evaluations in the precisions that ship.
    """

    path: Path
    evaluations: dict[Subnet, Evaluation]
    data_fingerprint: str
    lent: Mapping[Path, int] = field(default_factory=dict)
    converted: Converted = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, checkpoint_sha256: str, others: Iterable[Path] = ()) -> Recorded:
        """Read journals without changing them; a torn last line counts nothing.

        Args:
            others: journals that are read too, since a complete evaluation of the same checkpoint on the same images is worth the
                same wherever it was made. The first journal that knows the checkpoint decides which images. One of the others that
                can't be read counts as empty.

        Raises:
            UsageError: there is no journal, or none holds anything of this checkpoint.
            CheckpointError: a line of the journal itself is not a journal's.
        """
        journals: dict[Path, list[Any]] = {}
        if path.is_file():
            journals[path] = _lines(path)
        for other in others:
            if other.resolve() != path.resolve() and other.is_file():
                with contextlib.suppress(CheckpointError):
                    journals[other] = _lines(other)
        if not journals:
            raise UsageError(f"{path}: no journal to replay; search without --replay first")
        entries = (line for lines in journals.values() for line in reversed(lines))
        header = next((e for e in entries if e["type"] == "header" and e["checkpoint_sha256"] == checkpoint_sha256), None)
        if header is None:
            raise UsageError(f"{path}: the journal holds nothing of the run's newest checkpoint; search without --replay first")
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
        """The scores of all recorded subnets that are choices of the space."""
        subnets = [subnet for subnet in self.evaluations if space.holds(subnet)]
        if not subnets:
            return {}
        params, _ = count_costs_batch(space, SubnetBatch.from_subnets(subnets))
        known = [self.evaluations[subnet] for subnet in subnets]
        return {s: (e.accuracy, -e.loss, -int(count)) for s, e, count in zip(subnets, known, params, strict=True)}

    def ranked(self, space: SearchSpace, feasible: Feasible) -> EvolutionResult:
        """The recorded subnets that meet the limits, best first.

        Raises:
            LimitError: none does.
        """
        scores = self.scores(space)
        legal = feasible(SubnetBatch.from_subnets(list(scores))).tolist() if scores else list[bool]()
        candidates = [item for item, is_legal in zip(scores.items(), legal, strict=True) if is_legal]
        if not candidates:
            more = " and other journals of the run" if self.lent else ""
            raise LimitError(
                f"none of the {len(scores)} subnets in {self.path}{more} meets the limits; "
                "search without --replay to evaluate some that do"
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
    return CheckpointError(f"{path}: not a search journal; move the file away to start anew")
