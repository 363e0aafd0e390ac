"""The target devices of a search: limit, latency prediction, and for a device at hand the measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.errors import BuildError, CheckpointError, DeviceError, GrowtasError, MissingExtra
from growtas.latency.at_hand import CPU
from growtas.latency.estimate import Latency, LatencyEstimator
from growtas.latency.measured.fit import fit_latency
from growtas.latency.measured.stopwatch import LEAST_MARGIN, LocalStopwatch
from growtas.sampling import Feasible
from growtas.search.limits import check_latency
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.units import format_ms

ROOM_LEVEL = 0.8
"""Share of subnets whose measured latency must lie within the room above the prediction."""
_COMMON = 3
NOT_MEASURABLE = (BuildError, CheckpointError, DeviceError, MissingExtra, MemoryError, RuntimeError)
"""Errors of building or running a subnet on a GPU after which a search continues with predictions."""


def why_not_measured(error: Exception) -> str:
    """Returns the reason in one sentence. CUDA's error messages, which PyTorch passes on, are long and therefore cut."""
    return str(error) if isinstance(error, GrowtasError) else f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One target device of a search.

    Attributes:
        device: name of the device.
        max_ms: latency limit in milliseconds; None means no limit.
        estimator: predicts latencies; a limit needs it.
        stopwatch: measures latencies on the device. With it, predictions only exclude subnets, and the chosen subnet is measured.
        fitted_to: measured subnets and their milliseconds, to which the estimator was fitted. A finalist that misses the limit is
            added, and the model is fitted again. None keeps the estimator unchanged.
        margin: smallest relative margin of a measurement; predictions leave room for it.
        not_measured_because: reason why a device at hand is not measured.
    """

    device: str
    max_ms: float | None = None
    estimator: LatencyEstimator | None = None
    stopwatch: LocalStopwatch | None = None
    fitted_to: Mapping[Subnet, float] | None = None
    margin: float = LEAST_MARGIN
    not_measured_because: str | None = None

    def check(self, space: SearchSpace) -> None:
        """Checks by the prediction that some subnet meets the limit. For a device at hand the measurement checks it instead.

        Raises:
            LimitError: no subnet does; the message names the lowest value that can be met.
        """
        if self.estimator is not None and self.stopwatch is None:
            check_latency(space, self.max_ms, self._predict(space.smallest), self.estimator.kind, self.estimator.conditions)

    def feasible(self, space: SearchSpace) -> Feasible:
        """Returns the monotone predicate of the limit.

        If finalists are measured, a prediction must leave room for their margin and for its own error (:func:`room`). Otherwise
        many of a search's best subnets, which lie close to the limit, would miss it. The smallest subnet always passes, because its
        measurement met the limit.
        """
        estimator, limit = self.estimator, self.max_ms
        if estimator is None or limit is None:
            return lambda batch: np.ones(len(batch), bool)
        if self.stopwatch is not None:
            limit = max(limit / ((1 + room(estimator)) * (1 + self.margin)), self._predict(space.smallest))

        def predicate(batch: SubnetBatch) -> NDArray[np.bool_]:
            return np.asarray(estimator.predict_ms(batch) <= limit)

        return predicate

    def meets(self, space: SearchSpace, subnets: Sequence[Subnet], missed: Sequence[Subnet]) -> NDArray[np.bool_]:
        """Predicts which subnets meet the limit, after some finalists were measured and missed it.

        The model is fitted again with the missed finalists. If there are three or more, the smallest ratio of their measured to
        their predicted latencies is applied to all predictions.

        Args:
            space: the search space.
            subnets: the subnets to judge.
            missed: measured finalists that missed the limit.
        """
        if self.max_ms is None or self.stopwatch is None or self.estimator is None or not subnets:
            return np.ones(len(subnets), bool)
        misses = {subnet: measured for subnet in missed if (measured := self.stopwatch.known(subnet)) is not None}
        model: LatencyEstimator = self.estimator
        if self.fitted_to:
            samples = {**self.fitted_to, **{subnet: measured.ms for subnet, measured in misses.items()}}
            model = fit_latency(space, list(samples), list(samples.values()), self.stopwatch.conditions)
        needed = (1 + room(model)) * (1 + self.margin)
        if len(misses) >= _COMMON:
            predicted = model.predict_ms(SubnetBatch.from_subnets(list(misses)))
            needed = max(needed, min(measured.upper_ms / ms for measured, ms in zip(misses.values(), predicted, strict=True)))
        return np.asarray(model.predict_ms(SubnetBatch.from_subnets(subnets)) * needed <= self.max_ms)

    def latency(self, subnet: Subnet, *, measure: bool) -> DeviceLatency:
        """Returns the predicted and the measured latency of a subnet.

        If a GPU can't build or run the subnet, the result has a reason instead of a measured latency.

        Args:
            subnet: the subnet.
            measure: whether to measure the subnet now if the device is at hand; otherwise only a known measurement is used.

        Raises:
            BuildError, CheckpointError: the CPU can't build or run the subnet.
        """
        predicted, measured, provenance, why_not = None, None, "", self.not_measured_because
        if (model := self.estimator) is not None:
            fitted = getattr(model, "provenance", "")
            provenance = f"{model.kind}: {fitted}" if fitted else f"{model.kind} from the datasheet"
            predicted = Latency(
                ms=self._predict(subnet),
                kind=model.kind,
                conditions=model.conditions,
                relative_uncertainty=model.relative_uncertainty,
            )
        if (watch := self.stopwatch) is not None:
            try:
                timed = watch.measure(subnet, self.max_ms) if measure else watch.known(subnet)
            except NOT_MEASURABLE as error:
                if watch.device == CPU:
                    raise
                timed, why_not = None, why_not_measured(error)
            if timed is not None:
                measured = Latency(
                    ms=timed.ms,
                    kind="measured",
                    conditions=watch.conditions,
                    relative_uncertainty=timed.margin,
                    unsteady=timed.unsteady,
                )
        return DeviceLatency(self.device, self.max_ms, predicted, measured, provenance, why_not)

    def _predict(self, subnet: Subnet) -> float:
        assert self.estimator is not None
        return float(self.estimator.predict_ms(SubnetBatch.from_subnets([subnet]))[0])


def room(estimator: LatencyEstimator) -> float:
    """Returns the relative distance above a prediction within which :data:`ROOM_LEVEL` of the measured latencies lie; at least 0.

    It is computed from the estimator's residuals (measured / predicted - 1) on subnets that it was not fitted to. Without residuals
    it is the estimator's uncertainty.
    """
    residuals = np.sort(np.asarray(getattr(estimator, "residuals", ()), np.float64))
    if not residuals.size:
        return estimator.relative_uncertainty or 0.0
    rank = min(int(np.ceil((len(residuals) + 1) * ROOM_LEVEL)), len(residuals))
    return max(float(residuals[rank - 1]), 0.0)


@dataclass(frozen=True)
class DeviceLatency:
    """A subnet's latency on one device, with the limit there.

    Attributes:
        device: name of the device.
        max_ms: latency limit in milliseconds; None means no limit.
        predicted: latency predicted by the estimator, or None.
        measured: latency measured on the device, or None; its uncertainty is the measurement's margin.
        provenance: source of the prediction, in words.
        not_measured_because: reason why a device at hand was not measured.
    """

    device: str
    max_ms: float | None
    predicted: Latency | None
    measured: Latency | None
    provenance: str = ""
    not_measured_because: str | None = None

    @property
    def judged(self) -> Latency | None:
        """The latency that is compared with the limit: the measured one if there is one."""
        return self.measured or self.predicted

    @property
    def judged_ms(self) -> float | None:
        """Milliseconds that are compared with the limit: the measured median plus its margin, or the prediction without margin."""
        judged = self.judged
        if judged is None:
            return None
        return judged.ms * (1 + (judged.relative_uncertainty or 0.0)) if judged is self.measured else judged.ms

    @property
    def meets(self) -> bool:
        """Whether :attr:`judged_ms` is within the limit."""
        return self.max_ms is None or (self.judged_ms is not None and self.judged_ms <= self.max_ms)

    @property
    def unsteady(self) -> bool:
        """Whether other work disturbed the measurement."""
        return self.measured is not None and bool(self.measured.unsteady)

    @property
    def undecided(self) -> bool:
        """Whether the limit lies within the margin of an unsteady measurement: it is probably met, but this is not certain."""
        return self.unsteady and not self.meets and self.measured is not None and self.measured.ms <= (self.max_ms or 0.0)

    @property
    def note(self) -> str | None:
        """Describes the kind of latency in words; None without a latency."""
        latency = self.judged
        if latency is None:
            return None
        if latency.kind == "measured":
            text = f"measured on this machine ({latency.conditions})"
            if not latency.unsteady:
                return text
            how = "other work was running, so the latency is computed from the ratio to a reference subnet, timed in turns"
            text = f"{text}, unsteady: {how}"
            if self.undecided:
                return f"{text}; the limit lies within its interval, so the limit is probably met, but this is not certain"
            return text if self.max_ms is None else f"{text}; the upper end of its interval is compared with the limit"
        spread = latency.relative_uncertainty or 0.0
        because = f" ({self.not_measured_because})" if self.not_measured_because else ""
        text = f"{self.provenance}, not measured{because}; uncertainty +-{spread:.0%} ({latency.conditions})"
        if self.max_ms is None:
            return text
        highest = latency.ms * (1 + spread)
        if highest > self.max_ms:
            return f"{text}; at the upper end, {format_ms(highest)}, it misses the limit"
        return f"{text}; it meets the limit even at the upper end, {format_ms(highest)}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form: both latencies with their kinds, the limit, and which value was compared with it."""
        limited = self.judged if self.max_ms is not None else None
        return {
            "device": self.device,
            "max_latency_ms": self.max_ms,
            "judged_on": limited.kind if limited else None,
            "judged": {"ms": self.judged_ms, "kind": limited.kind} if limited else None,
            "predicted": {**self.predicted.to_dict(), "provenance": self.provenance} if self.predicted else None,
            "measured": self.measured.to_dict() if self.measured else None,
            **({"not_measured_because": self.not_measured_because} if self.not_measured_because else {}),
        }
