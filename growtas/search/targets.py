"""The devices of a search: each with its limit, what predicts latencies there, and the stopwatch of one that is at hand."""

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
"""Share of subnets whose measured latency the room above a prediction is to hold."""
_COMMON = 3
NOT_MEASURABLE = (BuildError, CheckpointError, DeviceError, MissingExtra, MemoryError, RuntimeError)
"""What building and running a subnet on a GPU raises where that is not possible; a search then goes on with predictions."""


def why_not_measured(error: Exception) -> str:
    """The reason in one sentence; CUDA's own errors, which PyTorch raises as they are, are long."""
    return str(error) if isinstance(error, GrowtasError) else f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One device.

    Attributes:
        device: its name.
        max_ms: limit on the latency in milliseconds; None is no limit.
        estimator: predicts latencies; needed for a limit.
        stopwatch: measures on the device; with it the estimator only prunes, and what is chosen was measured.
        fitted_to: milliseconds of measured subnets; a finalist that misses is added to them, and the model is fitted again. Without
            them the estimator stays as it is.
        margin: that a measurement is going to have at least; predictions leave room for it.
        not_measured_because: why a device that is at hand is not measured.
    """

    device: str
    max_ms: float | None = None
    estimator: LatencyEstimator | None = None
    stopwatch: LocalStopwatch | None = None
    fitted_to: Mapping[Subnet, float] | None = None
    margin: float = LEAST_MARGIN
    not_measured_because: str | None = None

    def check(self, space: SearchSpace) -> None:
        """Make sure that some subnet meets the limit, by the prediction; a device at hand was asked by whoever measured.

        Raises:
            LimitError: no subnet does; the message names the nearest value that one meets.
        """
        if self.estimator is not None and self.stopwatch is None:
            check_latency(space, self.max_ms, self._predict(space.smallest), self.estimator.kind, self.estimator.conditions)

    def feasible(self, space: SearchSpace) -> Feasible:
        """The monotone predicate of the limit. A smallest subnet that was measured counts, whatever is predicted for it.

        Where finalists are measured, a prediction must leave room for their margin and its own error (:func:`room`): a search for
        accuracy ends at the limit, and would choose among subnets that miss it.
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
        """Which subnets are predicted to meet the limit, after some finalists were measured to miss it.

        The model is fitted again with them. What three of them or more have in common beyond it, others will have too.
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
        """The predicted and the measured latency; ``measure`` times the subnet now where the device is at hand.

        Where a GPU can't build or run this subnet, there is no measured latency, and the reason is in its place.

        Raises:
            BuildError, CheckpointError: the CPU can't.
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


DEVICE_LATENCY = """An entry of ``latencies``: a subnet's latency on one device.

Fields:
    device (text): The device's name.
    max_latency_ms (number or null): The limit there, in milliseconds; null for none.
    judged_on (text or null): Kind of the number that the limit was judged on: ``measured`` or ``modelled``; null without a limit.
    judged (object or null): What was compared with the limit; null without one.
    judged.ms (number): Milliseconds: a measured median with its margin, or a bare prediction.
    judged.kind (text): ``measured`` or ``modelled``.
    predicted (object or null): What the device's model predicts; null without a model.
    predicted.provenance (text): Where the prediction comes from, in words.
    measured (object or null): What was measured here; null where the device is not at hand.
    not_measured_because (text): Why a device that is at hand was not measured. Absent for others.
"""


def room(estimator: LatencyEstimator) -> float:
    """How far above a prediction :data:`ROOM_LEVEL` of the measured latencies lie at most, relative to it; at least 0.

    From the estimator's residuals on subnets that it was not fitted to, measured over predicted less 1; without any its error.
    """
    residuals = np.sort(np.asarray(getattr(estimator, "residuals", ()), np.float64))
    if not residuals.size:
        return estimator.relative_uncertainty or 0.0
    rank = min(int(np.ceil((len(residuals) + 1) * ROOM_LEVEL)), len(residuals))
    return max(float(residuals[rank - 1]), 0.0)


@dataclass(frozen=True)
class DeviceLatency:
    """A subnet's latency on one device, with what the limit there was.

    Attributes:
        device: its name.
        max_ms: the limit there, in milliseconds; None is no limit.
        predicted: by the estimator, where there is one.
        measured: on the device, where it is at hand; its uncertainty is the measurement's margin.
        provenance: where the prediction comes from, for people.
        not_measured_because: why a device that is at hand was not measured.
    """

    device: str
    max_ms: float | None
    predicted: Latency | None
    measured: Latency | None
    provenance: str = ""
    not_measured_because: str | None = None

    @property
    def judged(self) -> Latency | None:
        """The number that the limit was judged on: the measured one where there is one."""
        return self.measured or self.predicted

    @property
    def judged_ms(self) -> float | None:
        """Milliseconds that were compared with the limit: a measured median with its margin, or a bare prediction."""
        judged = self.judged
        if judged is None:
            return None
        return judged.ms * (1 + (judged.relative_uncertainty or 0.0)) if judged is self.measured else judged.ms

    @property
    def meets(self) -> bool:
        """Whether that number is within the limit."""
        return self.max_ms is None or (self.judged_ms is not None and self.judged_ms <= self.max_ms)

    @property
    def unsteady(self) -> bool:
        """Whether it was measured while other work disturbed the timings."""
        return self.measured is not None and bool(self.measured.unsteady)

    @property
    def undecided(self) -> bool:
        """Whether the limit lies between an unsteady measurement and that number: it is likely met, and was not shown to be."""
        return self.unsteady and not self.meets and self.measured is not None and self.measured.ms <= (self.max_ms or 0.0)

    @property
    def note(self) -> str | None:
        """What kind of number the latency is, in words; None without one."""
        latency = self.judged
        if latency is None:
            return None
        if latency.kind == "measured":
            text = f"measured on this machine ({latency.conditions})"
            if not latency.unsteady:
                return text
            how = "other work was running, so the latency follows from the ratio to a reference subnet, timed in turns"
            text = f"{text}, unsteady: {how}"
            if self.undecided:
                return f"{text}; its interval crosses the limit: the limit is likely met, but that is not certain"
            return text if self.max_ms is None else f"{text}; the limit is judged on the upper end of its interval"
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
        """The JSON form: both numbers with their kinds, the limit, which of them decided, and what was compared with it."""
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
