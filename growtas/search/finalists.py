"""Chooses the result of a search: the best subnet that meets every limit, measured on devices at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from growtas.latency.estimate import Latency
from growtas.progress import SILENT, Progress
from growtas.search.journal import Conversion, Evaluation
from growtas.search.limits import Limits, check_latency
from growtas.search.precision import Accuracies, ConvertedScorer, Ranking, accuracies_dict
from growtas.search.scoring import Score
from growtas.search.targets import DeviceLatency, Target
from growtas.space import SearchSpace
from growtas.subnet import Subnet

MAX_FINALISTS = 8
"""Number of finalists that are measured before the search falls back on the smallest subnet."""


@dataclass(frozen=True)
class Finalist:
    """A subnet that was considered as the result.

    Attributes:
        subnet: the subnet.
        accuracy: top-1 accuracy on the search split in fp32, 0 to 1.
        latencies: latency on each device, in the order of the devices.
        converted: evaluations in the precisions of the export.
    """

    subnet: Subnet
    accuracy: float
    latencies: tuple[DeviceLatency, ...]
    converted: Accuracies = field(default_factory=dict)

    @property
    def meets(self) -> bool:
        """Whether the subnet meets the limit of every device."""
        return all(latency.meets for latency in self.latencies)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "subnet": self.subnet.to_dict(),
            "accuracy": self.accuracy,
            "converted": accuracies_dict(self.converted),
            "latencies": [latency.to_dict() for latency in self.latencies],
            "meets": self.meets,
        }


@dataclass(frozen=True, kw_only=True)
class SearchedSubnet:
    """The subnet that a search chose.

    Attributes:
        subnet: the chosen subnet.
        costs: params, MACs without and with the relative position, and modelled bytes of activations and weights; see
            :meth:`growtas.search.limits.Limits.costs`.
        evaluation: evaluation on the search split in fp32.
        finalists: the considered subnets in the order in which they were judged; the last one was chosen.
        scored: subnets that were evaluated in the precisions of the export, each with its fp32 accuracy and these evaluations, best
            fp32 accuracy first.
        chosen_by: the precisions whose accuracy decided the choice.
    """

    subnet: Subnet
    costs: dict[str, int]
    evaluation: Evaluation
    finalists: tuple[Finalist, ...]
    scored: tuple[tuple[Subnet, float, Accuracies], ...] = ()
    chosen_by: tuple[str, ...] = ("fp32",)

    @property
    def converted(self) -> Accuracies:
        """Evaluations of the chosen subnet in the precisions of the export."""
        return self.finalists[-1].converted

    def accuracy_in(self, conversion: Conversion | None) -> float | None:
        """Returns the accuracy after a conversion, or in fp32 for None; None if it is not known."""
        evaluation = self.evaluation if conversion is None else self.converted.get(conversion)
        return None if evaluation is None else evaluation.accuracy

    @property
    def latencies(self) -> tuple[DeviceLatency, ...]:
        """Latency of the chosen subnet on each device."""
        return self.finalists[-1].latencies

    @property
    def unsteady(self) -> bool:
        """Whether other work disturbed one of these measurements."""
        return any(latency.unsteady for latency in self.latencies)

    @property
    def latency(self) -> Latency | None:
        """Latency that was compared with the first device's limit; None without a device."""
        return self.latencies[0].judged if self.latencies else None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form: the subnet's keys, and its costs, accuracy, loss and latencies."""
        return {
            **self.subnet.to_dict(),
            **{(f"modelled_{name}" if name.endswith("_bytes") else name): cost for name, cost in self.costs.items()},
            "accuracy": self.evaluation.accuracy,
            "loss": self.evaluation.loss if np.isfinite(self.evaluation.loss) else None,
            "converted": accuracies_dict(self.converted),
            "chosen_by": list(self.chosen_by),
            "latency": self.latency.to_dict() if self.latency else None,
            "latencies": [latency.to_dict() for latency in self.latencies],
        }


def choose(
    space: SearchSpace,
    limits: Limits,
    targets: Sequence[Target],
    ranked: Sequence[tuple[Subnet, Score]],
    scorer: Callable[[Sequence[Subnet]], Sequence[Score]],
    progress: Progress = SILENT,
    *,
    ships: Sequence[Conversion | None] = (),
    converted: ConvertedScorer | None = None,
) -> SearchedSubnet:
    """Chooses the subnet with the best score whose latencies meet all limits.

    On a device at hand the latency is measured and compared with its margin; on other devices it is predicted. If the export has
    another precision than fp32, scores come from :class:`growtas.search.precision.Ranking`. After a finalist misses a limit, the
    latency models are fitted again with it, and subnets that are then predicted to miss are excluded. After ``MAX_FINALISTS``
    misses the smallest subnet is chosen. It is known to meet the limits, or on an unsteady machine at least not known to miss them.

    Args:
        space: the search space.
        limits: the limits that need no device.
        targets: the devices with their limits.
        ranked: evaluated subnets that are predicted to be legal, best first.
        scorer: evaluates the smallest subnet if it is needed.
        progress: receives a stage for each subnet that is measured.
        ships: conversion of the chosen subnet for each target; None, or an empty sequence, means fp32.
        converted: scores converted subnets.

    Raises:
        LimitError: not even the smallest subnet meets a limit.
    """
    tried: list[Finalist] = []
    left, ranking = list(ranked), Ranking(ships, converted)
    while True:
        if left and len(tried) < MAX_FINALISTS:
            subnet, score = left.pop(ranking.best(left))
        else:
            subnet, score = space.smallest, scorer([space.smallest])[0]
            ranking.look_at([subnet])
        if any(target.stopwatch for target in targets):
            progress.stage(f"measuring a finalist: {subnet}")
        latencies = tuple(target.latency(subnet, measure=True) for target in targets)
        tried.append(Finalist(subnet, score[0], latencies, ranking.accuracies.get(subnet, {})))
        if tried[-1].meets:
            break
        if subnet == space.smallest:
            for latency in latencies:
                if (judged := latency.judged) is not None and (compared := latency.judged_ms) is not None and not latency.undecided:
                    check_latency(space, latency.max_ms, compared, judged.kind, judged.conditions, unsteady=latency.unsteady)
            break
        subnets, missed = [subnet for subnet, _ in left], [finalist.subnet for finalist in tried]
        keep = np.logical_and.reduce([target.meets(space, subnets, missed) for target in targets])
        left = [item for item, stays in zip(left, keep, strict=True) if stays]
    costs, evaluation = limits.costs(space, subnet), Evaluation(score[0], -score[1])
    scored = tuple((other, other_score[0], known) for other, other_score in ranked if (known := ranking.accuracies.get(other)))
    return SearchedSubnet(
        subnet=subnet, costs=costs, evaluation=evaluation, finalists=tuple(tried), scored=scored, chosen_by=ranking.by
    )
