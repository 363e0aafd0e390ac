"""Hard limits on a subnet's costs, and finding out before the search that no subnet meets them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch, macs_with_relative_position
from growtas.errors import LimitError
from growtas.latency.estimate import Conditions, Kind
from growtas.sampling import Feasible
from growtas.search.memory import activation_bytes, weight_bytes
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.units import format_bytes, format_count, format_limit, format_ms


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper bounds on what needs no device, inclusive; None is no limit. Latencies are :class:`growtas.search.targets.Target`'s.

    Attributes:
        max_params: parameters.
        max_macs: multiply-accumulates for one image, without the relative position.
        max_macs_with_relative_position: the same with it; see :func:`growtas.costs.macs_with_relative_position`.
        max_activation_bytes: modelled peak of the live activations at ``batch`` and ``precision``.
        max_size_bytes: bytes of the weights at ``precision``, modelled.
        batch: images at once.
        precision: of activations and weights.
    """

    max_params: int | None = None
    max_macs: int | None = None
    max_macs_with_relative_position: int | None = None
    max_activation_bytes: int | None = None
    max_size_bytes: int | None = None
    batch: int = 1
    precision: str = "fp32"

    def feasible(self, space: SearchSpace) -> Feasible:
        """The monotone predicate over a batch: which subnets meet every limit."""
        limited = [(limit, costs) for limit, costs, _, _ in self.terms(space) if limit is not None]

        def predicate(batch: SubnetBatch) -> NDArray[np.bool_]:
            legal = np.ones(len(batch), bool)
            for limit, costs in limited:
                legal &= costs(batch) <= limit
            return legal

        return predicate

    def check(self, space: SearchSpace) -> None:
        """Make sure that some subnet meets all limits: the smallest one, which has the lowest costs, decides.

        Raises:
            LimitError: no subnet does; the message names each such limit and the nearest value that one meets.
        """
        smallest = SubnetBatch.from_subnets([space.smallest])
        problems = []
        for limit, costs, what, form in self.terms(space):
            if limit is not None and (lowest := float(costs(smallest)[0])) > limit:
                problems.append(_too_low(what, limit, lowest, form))
        if problems:
            raise LimitError(f"no subnet of {space.name} has {', and none has '.join(problems)}")

    def costs(self, space: SearchSpace, subnet: Subnet) -> dict[str, int]:
        """Params, MACs without and with the relative position, and the modelled bytes of activations and weights of one subnet."""
        batch = SubnetBatch.from_subnets([subnet])
        names = ("params", "macs", "macs_with_relative_position", "activation_bytes", "size_bytes")
        return {name: int(costs(batch)[0]) for name, (_, costs, _, _) in zip(names, self.terms(space), strict=True)}

    def terms(
        self, space: SearchSpace
    ) -> list[tuple[int | None, Callable[[SubnetBatch], NDArray[Any]], str, Callable[[float, int], str]]]:
        """Of each cost its limit, its values, what it is called and how it is written."""
        images, precision = self.batch, self.precision
        memory = f"activation memory (modelled, batch {images}, {precision})"
        return [
            (self.max_params, lambda batch: count_costs_batch(space, batch)[0], "params", format_count),
            (self.max_macs, lambda batch: count_costs_batch(space, batch)[1], "MACs", format_count),
            (
                self.max_macs_with_relative_position,
                lambda batch: macs_with_relative_position(space, batch),
                "MACs with the relative position",
                format_count,
            ),
            (self.max_activation_bytes, lambda batch: activation_bytes(space, batch, images, precision), memory, format_bytes),
            (self.max_size_bytes, lambda batch: weight_bytes(space, batch, precision), f"of weights in {precision}", format_bytes),
        ]


def check_latency(
    space: SearchSpace,
    max_ms: float | None,
    smallest_ms: float,
    kind: Kind,
    conditions: Conditions,
    *,
    unsteady: bool = False,
) -> None:
    """Make sure that the smallest subnet, whose latency is given in milliseconds, meets a latency limit.

    Args:
        unsteady: whether other work disturbed the measurement; the message says it.

    Raises:
        LimitError: it does not; the message says how slow it is.
    """
    if max_ms is not None and smallest_ms > max_ms:
        problem = _too_low(f"{kind} latency ({conditions})", max_ms, smallest_ms, format_ms)
        busy = ", measured while other work was running here; on a quiet machine it may be faster" if unsteady else ""
        raise LimitError(f"no subnet of {space.name} has {problem}{busy}")


def _too_low(what: str, limit: float, lowest: float, form: Callable[[float, int], str]) -> str:
    return f"at most {format_limit(limit, form)} {what}; the smallest has {form(_ceil_3_digits(lowest), 3)}"


def _ceil_3_digits(value: float) -> float:
    """The value rounded up to three significant digits, so that it is a legal limit when typed back."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(round(value / step, 10)) * step
