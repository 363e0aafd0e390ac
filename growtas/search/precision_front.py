"""A front over subnets and precisions: a subnet in fp32, fp16 and int8 gives three points with their own latency and accuracy.

The evolution of a front uses fp32 accuracies only. Its subnets that are not dominated over these accuracies and the latencies of
all precisions are converted afterwards. Then the front is computed again over pairs of a subnet and a precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from growtas.batch import SubnetBatch
from growtas.costs import count_costs
from growtas.search.journal import Conversion
from growtas.search.pareto import Axis, axis_costs, cost_axes, front_numbers, non_dominated
from growtas.search.precision import Accuracies, ConvertedScorer, accuracies_dict
from growtas.search.targets import Target
from growtas.space import SearchSpace
from growtas.subnet import Subnet

_NOT_RECORDED = "its accuracy is not in the journal, and a replay evaluates nothing"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One device in one precision.

    Attributes:
        target: the device.
        precision: precision of the network on the device.
        conversion: conversion of a subnet to this precision; None for fp32.
        unscored_because: reason why accuracies in this precision can't be evaluated on this machine; None if they can.
    """

    target: Target
    precision: str
    conversion: Conversion | None = None
    unscored_because: str | None = None


@dataclass(frozen=True)
class Point:
    """A subnet in one precision.

    Attributes:
        subnet: the subnet.
        variant: the device and the precision.
        fp32: top-1 accuracy of the subnet in fp32, 0 to 1.
        converted: evaluations of the subnet after conversions.
        costs: costs in the order of the axes; a latency is that of this precision.
    """

    subnet: Subnet
    variant: Variant
    fp32: float
    converted: Accuracies
    costs: tuple[float, ...]

    @property
    def accuracy(self) -> float | None:
        """Accuracy in the precision of this point; None if it is unknown."""
        if self.variant.conversion is None:
            return None if self.variant.unscored_because else self.fp32
        evaluation = self.converted.get(self.variant.conversion)
        return None if evaluation is None else evaluation.accuracy

    def to_dict(self, space: SearchSpace) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "subnet": self.subnet.to_dict(),
            "precision": self.variant.precision,
            "accuracy": self.accuracy,
            "accuracy_in_fp32": self.fp32,
            "converted": accuracies_dict(self.converted),
            **asdict(count_costs(space, self.subnet)),
            "latencies": [self.variant.target.latency(self.subnet, measure=False).to_dict()],
        }


@dataclass(frozen=True)
class PrecisionFront:
    """The pairs of a subnet and a precision that no other pair dominates.

    Attributes:
        points: the pairs, sorted by their first cost.
        axes: the cost axes.
        unscored: subnets of the evolution's front in precisions without a known accuracy; they belong to no front.
    """

    points: tuple[Point, ...]
    axes: tuple[Axis, ...]
    unscored: tuple[Point, ...]

    def to_dict(self, space: SearchSpace) -> dict[str, Any]:
        """Returns the content of ``front.json``."""
        costs = np.array([point.costs for point in self.points]).reshape(-1, len(self.axes))
        return {
            **front_numbers(self.axes, np.array([point.accuracy for point in self.points], float), costs),
            "subnets": [point.to_dict(space) for point in self.points],
            "unscored": [
                {**point.to_dict(space), "because": point.variant.unscored_because or _NOT_RECORDED} for point in self.unscored
            ],
        }


def precision_front(
    space: SearchSpace,
    variants: Sequence[Variant],
    names: Sequence[str],
    highest: Mapping[str, int | None],
    ranked: Sequence[tuple[Subnet, float]],
    scorer: ConvertedScorer,
) -> PrecisionFront:
    """Computes the front over subnets and precisions.

    Args:
        space: the search space.
        variants: the precisions. A point has the latency of its own precision and meets the limit of its own precision.
        names, highest: the axes and the limits on counted costs, as for :func:`growtas.search.pareto.cost_axes`.
        ranked: evaluated subnets with their accuracies in fp32.
        scorer: scores the subnets of the evolution's front in the other precisions.
    """
    subnets, accuracies = [subnet for subnet, _ in ranked], np.array([accuracy for _, accuracy in ranked])
    batch = SubnetBatch.from_subnets(subnets)
    axes = [cost_axes(space, [variant.target], names, dict(highest)) for variant in variants]
    costs = [axis_costs(of_variant, batch) for of_variant in axes]
    legal = [np.asarray(variant.target.feasible(space)(batch)) for variant in variants]
    rows = np.flatnonzero(non_dominated(np.column_stack([-accuracies, *costs])) & np.logical_or.reduce(legal))
    conversions = [variant.conversion for variant in variants if variant.conversion is not None]
    points = [
        Point(subnets[row], variant, float(accuracies[row]), converted, tuple(map(float, of_variant[row])))
        for row, converted in zip(rows, scorer([subnets[row] for row in rows], conversions), strict=True)
        for variant, of_variant, within in zip(variants, costs, legal, strict=True)
        if within[row]
    ]
    scored = [point for point in points if point.accuracy is not None]
    values = np.array([(point.accuracy, *point.costs) for point in scored], float).reshape(-1, 1 + costs[0].shape[1])
    front = [point for point, stays in zip(scored, non_dominated(values * [-1, *(1 for _ in axes[0])]), strict=True) if stays]
    merged = (
        replace(
            same[0],
            name=same[0].name.partition(":")[0],  # without the precision, because the axis has points of several precisions
            highest=max(axis.highest for axis in same),
            lowest=min(axis.lowest for axis in same),
        )
        for same in zip(*axes, strict=True)
    )
    return PrecisionFront(
        points=tuple(sorted(front, key=lambda point: point.costs)),
        axes=tuple(merged),
        unscored=tuple(point for point in points if point.accuracy is None),
    )
