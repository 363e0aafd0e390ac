"""A front over subnets and precisions: a subnet in fp32, fp16 and int8 is three points, each with its own latency and accuracy.

The evolution of a front knows accuracies in fp32 alone. What it leaves undominated over them and every precision's latency is
converted afterwards, and the front is drawn again over pairs of a subnet and a precision.
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
    """One device in one precision, as a part of such a front.

    Attributes:
        target: the device.
        precision: of the network there.
        conversion: what a subnet is converted to; None where it computes in fp32.
        unscored_because: why accuracies in this precision can't be had here; None where they can.
    """

    target: Target
    precision: str
    conversion: Conversion | None = None
    unscored_because: str | None = None


@dataclass(frozen=True)
class Point:
    """A subnet in a precision: its accuracy there, 0 to 1, and its costs in the order of the axes."""

    subnet: Subnet
    variant: Variant
    accuracy: float
    costs: tuple[float, ...]


@dataclass(frozen=True)
class PrecisionFront:
    """What no other pair of a subnet and a precision beats.

    Attributes:
        points: by rising first cost.
        axes: the costs; a latency is that of a point's own precision.
        accuracies: of every subnet that was looked at, in fp32 and converted.
        unscored: subnets of the evolution's front in precisions without a known accuracy, which are on no front.
    """

    points: tuple[Point, ...]
    axes: tuple[Axis, ...]
    accuracies: dict[Subnet, tuple[float, Accuracies]]
    unscored: tuple[tuple[Subnet, Variant], ...]

    def to_dict(self, space: SearchSpace) -> dict[str, Any]:
        """The content of ``front.json``."""
        costs = np.array([point.costs for point in self.points]).reshape(-1, len(self.axes))
        return {
            **front_numbers(self.axes, np.array([point.accuracy for point in self.points]), costs),
            "subnets": [{**self._entry(space, point.subnet, point.variant), "accuracy": point.accuracy} for point in self.points],
            "unscored": [
                {**self._entry(space, subnet, variant), "accuracy": None, "because": variant.unscored_because or _NOT_RECORDED}
                for subnet, variant in self.unscored
            ],
        }

    def _entry(self, space: SearchSpace, subnet: Subnet, variant: Variant) -> dict[str, Any]:
        fp32, converted = self.accuracies[subnet]
        return {
            "subnet": subnet.to_dict(),
            "precision": variant.precision,
            "accuracy_in_fp32": fp32,
            "converted": accuracies_dict(converted),
            **asdict(count_costs(space, subnet)),
            "latencies": [variant.target.latency(subnet, measure=False).to_dict()],
        }


def precision_front(
    space: SearchSpace,
    variants: Sequence[Variant],
    names: Sequence[str],
    highest: Mapping[str, int | None],
    ranked: Sequence[tuple[Subnet, float]],
    scorer: ConvertedScorer,
) -> PrecisionFront:
    """Draws the front over subnets and precisions.

    Args:
        variants: the precisions; a point has the latency of its own, and is within the limit of its own.
        names, highest: the axes and the limits on what is counted, as for :func:`growtas.search.pareto.cost_axes`.
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
    known = dict(zip(rows.tolist(), scorer([subnets[row] for row in rows], conversions), strict=True))
    points: list[Point] = []
    unscored: list[tuple[Subnet, Variant]] = []
    for row, converted in known.items():
        for variant, of_variant, within in zip(variants, costs, legal, strict=True):
            if not within[row]:
                continue
            own = None if variant.unscored_because else float(accuracies[row])
            if variant.conversion is not None:
                own = converted[variant.conversion].accuracy if variant.conversion in converted else None
            if own is None:
                unscored.append((subnets[row], variant))
            else:
                points.append(Point(subnets[row], variant, own, tuple(map(float, of_variant[row]))))
    values = np.array([(-point.accuracy, *point.costs) for point in points]).reshape(len(points), -1)
    front = [point for point, stays in zip(points, non_dominated(values), strict=True) if stays]
    merged = tuple(
        replace(
            same[0],
            name=f"latency {_device(variants)}" if same[0].name.startswith("latency ") else same[0].name,
            highest=max(axis.highest for axis in same),
            lowest=min(axis.lowest for axis in same),
        )
        for same in zip(*axes, strict=True)
    )
    return PrecisionFront(
        points=tuple(sorted(front, key=lambda point: point.costs)),
        axes=merged,
        accuracies={subnets[row]: (float(accuracies[row]), converted) for row, converted in known.items()},
        unscored=tuple(unscored),
    )


def _device(variants: Sequence[Variant]) -> str:
    return variants[0].target.device.partition(":")[0]
