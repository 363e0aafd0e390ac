"""Ranking again what a journal holds, under other limits and without the supernet or the images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch
from growtas.errors import CheckpointError, LimitError, UsageError
from growtas.files import read_json_lines
from growtas.sampling import Feasible
from growtas.search.evolution import EvolutionResult
from growtas.search.journal import Evaluation
from growtas.search.scoring import Score
from growtas.space import SearchSpace
from growtas.subnet import Subnet

ENOUGH = 50
"""Legal subnets from which a choice is worth something: a generation of the paper's."""


@dataclass(frozen=True)
class Recorded:
    """What a journal knows of one checkpoint on one set of images.

    Attributes:
        path: the journal.
        evaluations: every subnet that was evaluated in full, in the order of evaluation.
        data_fingerprint: the images; of several sets the one of the last search.
    """

    path: Path
    evaluations: dict[Subnet, Evaluation]
    data_fingerprint: str

    @classmethod
    def read(cls, path: Path, checkpoint_sha256: str) -> Recorded:
        """Read a journal without changing it; a torn last line counts nothing.

        Raises:
            UsageError: there is no journal, or it holds nothing of this checkpoint.
            CheckpointError: a line is not a journal's.
        """
        if not path.is_file():
            raise UsageError(f"{path}: no journal to replay; search without --replay first")
        try:
            lines = list(read_json_lines(path))
            headers = [line for line in lines if line["type"] == "header" and line["checkpoint_sha256"] == checkpoint_sha256]
            if not headers:
                raise UsageError(f"{path}: the journal holds nothing of the run's newest checkpoint; search without --replay first")
            key, evaluations = headers[-1]["key"], {}
            for line in lines:
                if line["type"] == "evaluation" and line["key"] == key:
                    loss = math.inf if line["loss"] is None else float(line["loss"])
                    evaluations[Subnet.from_dict(line["subnet"])] = Evaluation(float(line["accuracy"]), loss)
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{path}: not a search journal; move the file away to start anew") from None
        return cls(path, evaluations, str(headers[-1]["data_fingerprint"]))

    def scores(self, space: SearchSpace) -> dict[Subnet, Score]:
        """The scores of all recorded subnets that are choices of the space."""
        subnets = [subnet for subnet in self.evaluations if space.holds(subnet)]
        if not subnets:
            return {}
        params, _ = count_costs_batch(space, SubnetBatch.from_subnets(subnets))
        known = [self.evaluations[subnet] for subnet in subnets]
        return {s: (e.accuracy, -e.loss, -int(count)) for s, e, count in zip(subnets, known, params, strict=True)}

    def ranked(self, space: SearchSpace, feasible: Feasible) -> EvolutionResult[Score]:
        """The recorded subnets that meet the limits, best first.

        Raises:
            LimitError: none does.
        """
        scores = self.scores(space)
        legal = feasible(SubnetBatch.from_subnets(list(scores))).tolist() if scores else list[bool]()
        kept = [item for item, stays in zip(scores.items(), legal, strict=True) if stays]
        if not kept:
            raise LimitError(
                f"none of the {len(scores)} subnets in {self.path} meets the limits; "
                "search without --replay to evaluate some that do"
            )
        return EvolutionResult(tuple(sorted(kept, key=lambda item: item[1], reverse=True)), ())
