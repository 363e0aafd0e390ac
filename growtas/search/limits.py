"""Hard limits on a subnet's costs, and finding out before the search that no subnet meets them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.costs import count_costs, count_costs_batch
from growtas.errors import ConfigError, LimitError
from growtas.latency.estimate import Conditions, LatencyEstimator
from growtas.latency.profile import Kind
from growtas.sampling import Feasible
from growtas.space import SearchSpace
from growtas.units import format_count, format_ms


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper bounds, inclusive; None is no limit.

    Attributes:
        max_params: parameters.
        max_macs: multiply-accumulates for one image.
        max_latency_ms: milliseconds; needs an estimator wherever it is applied.
    """

    max_params: int | None = None
    max_macs: int | None = None
    max_latency_ms: float | None = None

    def feasible(self, space: SearchSpace, latency: LatencyEstimator | None = None) -> Feasible:
        """The monotone predicate over a batch: which subnets meet every limit.

        Raises:
            ConfigError: a latency limit without an estimator.
        """
        if self.max_latency_ms is not None and latency is None:
            raise ConfigError("a latency limit needs a device whose latency is meant")

        def predicate(batch: SubnetBatch) -> NDArray[np.bool_]:
            legal = np.ones(len(batch), bool)
            if self.max_params is not None or self.max_macs is not None:
                params, macs = count_costs_batch(space, batch)
                legal &= params <= (math.inf if self.max_params is None else self.max_params)
                legal &= macs <= (math.inf if self.max_macs is None else self.max_macs)
            if self.max_latency_ms is not None and latency is not None:
                legal &= latency.predict_ms(batch) <= self.max_latency_ms
            return legal

        return predicate

    def check(self, space: SearchSpace, latency: LatencyEstimator | None = None) -> None:
        """Make sure that some subnet meets all limits.

        Every cost is lowest at the space's smallest subnet, so it alone decides, for one limit as for all of them together.

        Args:
            latency: predicts the smallest subnet's latency; without it the latency limit is left for :meth:`check_latency`.

        Raises:
            LimitError: no subnet does; the message names each such limit and the nearest value that one meets.
        """
        costs = count_costs(space, space.smallest)
        problems = []
        if self.max_params is not None and costs.params > self.max_params:
            problems.append(_too_low("params", format_count(self.max_params), ceil_count(costs.params)))
        if self.max_macs is not None and costs.macs > self.max_macs:
            problems.append(_too_low("MACs", format_count(self.max_macs), ceil_count(costs.macs)))
        if problems:
            raise LimitError(f"no subnet of {space.name} has {', and none has '.join(problems)}")
        if latency is not None:
            smallest_ms = float(latency.predict_ms(SubnetBatch.from_subnets([space.smallest]))[0])
            self.check_latency(space, smallest_ms, latency.kind, latency.conditions)

    def check_latency(self, space: SearchSpace, smallest_ms: float, kind: Kind, conditions: Conditions) -> None:
        """Make sure that the smallest subnet, whose latency is given in milliseconds, meets the latency limit.

        Raises:
            LimitError: it does not; the message says how slow it is.
        """
        if self.max_latency_ms is not None and smallest_ms > self.max_latency_ms:
            what = f"{kind} latency ({conditions})"
            raise LimitError(
                f"no subnet of {space.name} has {_too_low(what, format_ms(self.max_latency_ms), ceil_ms(smallest_ms))}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"max_params": self.max_params, "max_macs": self.max_macs, "max_latency_ms": self.max_latency_ms}


def _too_low(what: str, limit: str, lowest: str) -> str:
    return f"at most {limit} {what}; the smallest has {lowest}"


def _ceil_3_digits(value: float) -> float:
    """The value rounded up to three significant digits, so that it is a legal limit when typed back."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(round(value / step, 6)) * step


def ceil_count(value: float) -> str:
    """A count as a limit that it meets: ``41434`` -> ``41.5K``."""
    return format_count(_ceil_3_digits(value))


def ceil_ms(value: float) -> str:
    """Milliseconds as a limit that they meet: ``4.2134`` -> ``4.22 ms``."""
    return format_ms(_ceil_3_digits(value))
