"""The devices of a search: a latency limit on each, who predicts latencies there, and who measures them at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.latency.estimate import Conditions, Latency, LatencyEstimator
from growtas.latency.fitted import fit_latency
from growtas.sampling import Feasible
from growtas.search.limits import check_latency
from growtas.space import SearchSpace
from growtas.subnet import Subnet


class Stopwatch(Protocol):
    """Measures subnets on a device that is at hand; :class:`growtas.latency.samples.LatencySamples` is one."""

    @property
    def conditions(self) -> Conditions:
        """What its numbers are of."""

    def known_ms(self, subnet: Subnet) -> float | None:
        """What was measured before, in milliseconds."""

    def measure_ms(self, subnet: Subnet) -> float:
        """The median in milliseconds, measured now where it is not known."""

    def measure_all(self, subnets: Iterable[Subnet], on_sample: Callable[[Subnet, float], None] | None = None) -> list[float]:
        """Medians of several subnets in milliseconds, in their order."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One device.

    Attributes:
        device: its name.
        max_ms: limit on the latency in milliseconds; None is no limit.
        estimator: predicts latencies; needed for a limit.
        stopwatch: measures on the device; with it the estimator only prunes, and what is chosen was measured.
        fitted_to: the measured subnets that the estimator was fitted to; what misses the limit is added to them.
    """

    device: str
    max_ms: float | None = None
    estimator: LatencyEstimator | None = None
    stopwatch: Stopwatch | None = None
    fitted_to: tuple[Subnet, ...] = ()

    def check(self, space: SearchSpace) -> None:
        """Make sure that some subnet meets the limit, by the prediction; a device at hand was asked by whoever measured.

        Raises:
            LimitError: no subnet does; the message names the nearest value that one meets.
        """
        if self.estimator is not None and self.stopwatch is None:
            check_latency(space, self.max_ms, self._predict(space.smallest), self.estimator.kind, self.estimator.conditions)

    def feasible(self, space: SearchSpace) -> Feasible:
        """The monotone predicate of the limit. A smallest subnet that was measured counts, whatever is predicted for it."""
        estimator, limit = self.estimator, self.max_ms
        if estimator is None or limit is None:
            return lambda batch: np.ones(len(batch), bool)
        if self.stopwatch is not None:
            limit = max(limit, self._predict(space.smallest))

        def predicate(batch: SubnetBatch) -> NDArray[np.bool_]:
            return np.asarray(estimator.predict_ms(batch) <= limit)

        return predicate

    def meets(self, space: SearchSpace, subnets: Sequence[Subnet], missed: Sequence[Subnet]) -> NDArray[np.bool_]:
        """Which subnets are predicted to meet the limit, after some finalists were measured to miss it."""
        if self.max_ms is None or self.stopwatch is None or self.estimator is None or not subnets:
            return np.ones(len(subnets), bool)
        measured = [*self.fitted_to, *missed]
        values = self.stopwatch.measure_all(measured)
        model = fit_latency(space, measured, values, self.stopwatch.conditions)
        return np.asarray(model.predict_ms(SubnetBatch.from_subnets(subnets)) <= self.max_ms)

    def predicted(self, subnet: Subnet) -> Latency | None:
        """The prediction, with its kind; None without an estimator."""
        if self.estimator is None:
            return None
        e = self.estimator
        return Latency(ms=self._predict(subnet), kind=e.kind, conditions=e.conditions, relative_uncertainty=e.relative_uncertainty)

    def measured(self, subnet: Subnet) -> Latency | None:
        """What was measured of a subnet so far; None where nothing was."""
        ms = self.stopwatch.known_ms(subnet) if self.stopwatch else None
        return None if ms is None or self.stopwatch is None else self._timed(ms, self.stopwatch.conditions)

    def measure(self, subnet: Subnet) -> Latency | None:
        """Measure where the device is at hand; None elsewhere."""
        return self._timed(self.stopwatch.measure_ms(subnet), self.stopwatch.conditions) if self.stopwatch else None

    @property
    def provenance(self) -> str:
        """Where its predictions come from, in words; empty without an estimator."""
        if self.estimator is None:
            return ""
        fitted = getattr(self.estimator, "provenance", "")
        return f"{self.estimator.kind}: {fitted}" if fitted else f"{self.estimator.kind} from the datasheet"

    def latency(self, subnet: Subnet, *, measure: bool) -> DeviceLatency:
        """Both numbers side by side.

        Args:
            measure: measure now, where the device is at hand; otherwise what was measured before.
        """
        measured = self.measure(subnet) if measure else self.measured(subnet)
        return DeviceLatency(self.device, self.max_ms, self.predicted(subnet), measured, self.provenance)

    @staticmethod
    def _timed(ms: float, conditions: Conditions) -> Latency:
        return Latency(ms=ms, kind="measured", conditions=conditions)

    def _predict(self, subnet: Subnet) -> float:
        assert self.estimator is not None
        return float(self.estimator.predict_ms(SubnetBatch.from_subnets([subnet]))[0])


@dataclass(frozen=True)
class DeviceLatency:
    """A subnet's latency on one device, with what the limit there was.

    Attributes:
        device: its name.
        max_ms: the limit there, in milliseconds; None is no limit.
        predicted: by the estimator, where there is one.
        measured: on the device, where it is at hand.
        provenance: where the prediction comes from, for people.
    """

    device: str
    max_ms: float | None
    predicted: Latency | None
    measured: Latency | None
    provenance: str = ""

    @property
    def judged(self) -> Latency | None:
        """The number that the limit was judged on: the measured one where there is one."""
        return self.measured or self.predicted

    @property
    def meets(self) -> bool:
        """Whether that number is within the limit."""
        return self.max_ms is None or (self.judged is not None and self.judged.ms <= self.max_ms)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: both numbers with their kinds, the limit, and which of them it was judged on."""
        return {
            "device": self.device,
            "max_latency_ms": self.max_ms,
            "judged_on": self.judged.kind if self.judged and self.max_ms is not None else None,
            "predicted": {**self.predicted.to_dict(), "provenance": self.provenance} if self.predicted else None,
            "measured": self.measured.to_dict() if self.measured else None,
        }
