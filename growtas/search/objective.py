"""What a search optimises: accuracy alone, or a front over accuracy and some costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch
from growtas.errors import ConfigError, choices
from growtas.search.targets import Target
from growtas.space import SearchSpace

OBJECTIVES = ("accuracy", "pareto")
AXES = ("accuracy", "latency", "params", "macs")


@dataclass(frozen=True)
class Axis:
    """A cost that a front is drawn over; lower is better.

    Attributes:
        name: ``params``, ``macs``, or ``latency`` with the device's name.
        kind: ``modelled`` for a predicted latency, ``counted`` for params and MACs.
        unit: ``ms``, or empty.
        costs: values of many subnets, shape ``(len(batch),)``.
        highest: the limit, or the cost of the largest subnet.
        lowest: the cost of the smallest subnet.
    """

    name: str
    kind: str
    unit: str
    costs: Callable[[SubnetBatch], NDArray[np.float64]]
    highest: float
    lowest: float


def parse_axes(text: str | None, devices: bool) -> tuple[str, ...]:
    """The names of ``--front``: accuracy and at least one cost; by default latency where a device is named, else params.

    Raises:
        ConfigError: an unknown name, no cost, or latency without a device.
    """
    if text is None:
        return ("accuracy", "latency" if devices else "params")
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in AXES:
            raise ConfigError(f"--front {text}: {name!r} is no axis; legal are {choices(AXES)}")
    if "accuracy" not in names or len(names) < 2:
        raise ConfigError(f"--front {text}: a front is over accuracy and at least one of {choices(AXES[1:])}")
    if "latency" in names and not devices:
        raise ConfigError(f"--front {text}: a latency needs --device")
    return names


def cost_axes(space: SearchSpace, targets: Sequence[Target], names: Sequence[str], highest: dict[str, int | None]) -> list[Axis]:
    """The costs of a front, a latency for each device that predicts one.

    Args:
        names: of :data:`AXES`; accuracy is no cost and left out.
        highest: limits on ``params`` and ``macs``.
    """
    ends = SubnetBatch.from_subnets([space.smallest, space.largest])
    axes: list[Axis] = []

    def add(name: str, kind: str, unit: str, costs: Callable[[SubnetBatch], NDArray[np.float64]], limit: float | None) -> None:
        lowest, largest = (float(value) for value in costs(ends))
        axes.append(Axis(name, kind, unit, costs, min(largest, limit if limit is not None else largest), lowest))

    for name in names:
        if name == "latency":
            for target in targets:
                if (model := target.estimator) is not None:
                    add(f"latency {target.device}", model.kind, "ms", model.predict_ms, target.max_ms)
        elif name != "accuracy":
            add(name, "counted", "", _counter(space, name == "macs"), highest.get(name))
    return axes


def axis_costs(axes: Sequence[Axis], batch: SubnetBatch) -> NDArray[np.float64]:
    """The costs of many subnets, shape ``(len(batch), len(axes))``."""
    return np.column_stack([axis.costs(batch) for axis in axes])


def _counter(space: SearchSpace, index: int) -> Callable[[SubnetBatch], NDArray[np.float64]]:
    return lambda batch: np.asarray(count_costs_batch(space, batch)[index], np.float64)
