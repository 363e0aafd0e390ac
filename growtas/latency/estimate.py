"""A latency with its kind and conditions, and the interface of models that predict latencies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.fields import OBJECT, flag, list_of, real, record_of, text, whole
from growtas.units import format_limit, format_ms

Kind = Literal["measured", "modelled"]
"""``measured`` for a latency that was timed, ``modelled`` for any other."""
Hardware = Literal["cpu", "cuda"]
_ON_CPUS: dict[Hardware, tuple[str, ...]] = {"cpu": ("fp32", "int8")}
_ON_GPUS: dict[Hardware, tuple[str, ...]] = {"cuda": ("fp32", "fp16", "bf16", "int8", "fp8")}
_TORCH_ON_GPUS: dict[Hardware, tuple[str, ...]] = {"cuda": ("fp32", "fp16", "bf16")}
_TORCH: dict[Hardware, tuple[str, ...]] = {"cpu": ("fp32",), **_TORCH_ON_GPUS}
RUNTIMES: dict[str, dict[Hardware, tuple[str, ...]]] = {
    "onnxruntime": _ON_CPUS | _ON_GPUS,
    "openvino": _ON_CPUS,
    "tensorrt": _ON_GPUS,
    "tensorrt-rtx": _ON_GPUS,
    "torch": _TORCH,
    "torch.compile": _TORCH,
    "torch.cudagraphs": _TORCH_ON_GPUS,
}
"""Runtimes whose latencies can be measured, with the precisions for each on a CPU and on a GPU."""
NO_GAIN = 0.02
"""Relative difference of two latencies that is ignored: two measurements of the same subnet differ by up to 1.3 %."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Conditions of a latency.

    Attributes:
        device: name of the device.
        percentile: percentile of the timings, such as ``p50``.
        batch: number of images per batch.
        precision: precision of the network, such as ``fp32``, ``tf32``, ``fp16`` or ``int8``.
        runtime: runtime that executes the network.
    """

    device: str
    percentile: str = "p50"
    batch: int
    precision: str
    runtime: str

    def __str__(self) -> str:
        return f"{self.percentile}, batch {self.batch}, {self.precision}, {self.runtime} on {self.device}"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A latency that states how it was obtained.

    Attributes:
        ms: latency of one batch in milliseconds.
        kind: ``measured`` if it was timed, else ``modelled``.
        conditions: device, percentile, batch, precision and runtime.
        relative_uncertainty: half width of the interval around ``ms``, relative to it; for a measured latency its margin; or None.
        unsteady: whether other work disturbed the measurement; None if the latency was not measured.
    """

    ms: float
    kind: Kind
    conditions: Conditions
    relative_uncertainty: float | None = None
    unsteady: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form, including the interval in milliseconds if there is an uncertainty."""
        data: dict[str, Any] = {"ms": self.ms, "kind": self.kind, **asdict(self.conditions)}
        if self.relative_uncertainty is not None:
            u = self.relative_uncertainty
            data |= {"relative_uncertainty": u, "interval_ms": [self.ms * (1 - u), self.ms * (1 + u)]}
        return data if self.unsteady is None else {**data, "unsteady": self.unsteady}

    def __str__(self) -> str:
        spread = f" +-{self.relative_uncertainty:.0%}" if self.relative_uncertainty is not None else ""
        return f"{format_ms(self.ms)}{spread} ({kind_text(self.kind, self.unsteady)})"


LATENCY = """A latency with its kind, as ``predicted``, ``measured`` and ``latency``.

Fields:
    ms (number): Milliseconds for one batch.
    kind (text): ``measured``, or ``modelled`` for everything that was not timed.
    device (text): The device that the number is of.
    percentile (text): Always ``p50``, the median.
    batch (whole number): Images at once.
    precision (text): Precision of the network.
    runtime (text): What executes the network there.
    relative_uncertainty (number): Half width of the interval around the number, relative to it. Absent where it is not known.
    interval_ms (list of numbers): The ends of that interval, in milliseconds. Absent likewise.
    unsteady (true or false): Whether other work disturbed the measurement. Absent where nothing was measured.
"""


_NAME = text().or_null()
LATENCY_RULE = record_of(
    {"ms": real(0)},
    {
        "kind": text(),
        "device": _NAME,
        "percentile": _NAME,
        "batch": whole(1, 10**6).or_null(),
        "precision": _NAME,
        "runtime": _NAME,
        "relative_uncertainty": real(0).or_null(),
        "unsteady": flag().or_null(),
    },
    "an object with a number of milliseconds as ms, and texts as kind, device, precision and runtime",
).or_null()
_DEVICES = "a list of objects with device, max_latency_ms, predicted and measured"
# Files of earlier versions lack some entries.
_DEVICE_RULE = record_of(
    {},
    {
        "device": text(),
        "max_latency_ms": real(0).or_null(),
        "predicted": LATENCY_RULE,
        "measured": LATENCY_RULE,
        "judged_on": _NAME,
        "not_measured_because": _NAME,
    },
    _DEVICES,
)
SEARCHED_RULES = {
    "accuracy": real(0, 1).or_null(),
    "latency": LATENCY_RULE,
    "latencies": list_of(_DEVICE_RULE, _DEVICES, empty=True).or_null(),
    "device": _NAME,
    "limits": OBJECT.or_null(),
    "limits.max_latency_ms": real(0).or_null(),
    "checkpoint_sha256": _NAME,
}
"""Rules of a search's record of its subnet, in the subnet's file and in manifests, for :func:`growtas.fields.check_entries`."""


def kind_text(kind: str, unsteady: bool | None) -> str:
    """Returns the kind of a latency in words: ``measured, unsteady`` if other work disturbed the timings."""
    return f"{kind}, unsteady" if unsteady else kind


def no_faster(
    precision: str, ms: float, fp32_ms: float, kind: str, where: str = "here", *, ratio: float | None = None
) -> str | None:
    """Returns a sentence if a precision gains nothing; None if it is faster than fp32 by more than :data:`NO_GAIN`.

    Args:
        precision: the precision.
        ms: milliseconds of a network in this precision.
        fp32_ms: milliseconds of the same network in fp32.
        kind: kind of both latencies, in words.
        where: place of the measurement, in words.
        ratio: ratio of ``ms`` to ``fp32_ms``, if it is known more precisely than from the two numbers.
    """
    if (ms / fp32_ms if ratio is None else ratio) <= 1 - NO_GAIN:
        return None
    return f"{precision} is no faster than fp32 {where}: {format_ms(ms)} and {format_ms(fp32_ms)} (both {kind})"


def gain_over_fp32(
    precision: str, runtime: str, ms: float, fp32_ms: float, kind: Kind, where: str, *, unsteady: bool = False
) -> dict[str, Any]:
    """Returns the gain of a precision for one network in a runtime, for JSON.

    Returns:
        The arguments, and ``no_faster``: the sentence of :func:`no_faster`, or None if the precision is faster.
    """
    numbers = {"runtime": runtime, "precision": precision, "ms": ms, "fp32_ms": fp32_ms, "kind": kind}
    return {**numbers, "no_faster": no_faster(precision, ms, fp32_ms, kind_text(kind, unsteady), where)}


class LatencyEstimator(Protocol):
    """Predicts latencies of subnets of one space. Predictions must be monotone: a smaller subnet is never slower."""

    @property
    def kind(self) -> Kind:
        """Kind of the predictions: ``modelled``, unless they are timings."""

    @property
    def conditions(self) -> Conditions:
        """Conditions of the predictions."""

    @property
    def relative_uncertainty(self) -> float | None:
        """Half width of the interval around a prediction, relative to it."""

    def predict_ms(self, batch: SubnetBatch) -> NDArray[np.float64]:
        """Returns the milliseconds of each subnet, shape ``(len(batch),)``."""


def limit_lines(judged: Iterable[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[str]:
    """Returns a verdict for each artifact to which a device's limit applies, or one line that the limit was not checked.

    Args:
        judged: each artifact's label, and the search's latency limits on it, as
            :mod:`growtas.export.benchmark.limits` writes them.
    """
    lines, pairs = list[str](), [(label, limit) for label, limits in judged for limit in limits]
    for device in dict.fromkeys(limit["device"] for _, limit in pairs):
        limited = [pair for pair in pairs if pair[1]["device"] == device]
        lines += [_limit_line(*pair) for pair in [pair for pair in limited if pair[1]["holds"] is not None] or limited]
    return list(dict.fromkeys(lines))


def _limit_line(file: str, limit: Mapping[str, Any]) -> str:
    promised = limit["promised"]
    line = f"the search's latency limit {format_limit(limit['limit_ms'], format_ms)} on {limit['device']}"
    if promised:
        line += f" (in the search {format_ms(promised['ms'])}, {promised['kind']})"
    if limit["holds"] is None:
        return f"{line} was not checked: {limit['unchecked_because']}"
    verdict = "holds" if limit["holds"] else "does NOT hold"
    return f"{file}: {line} {verdict}: {format_ms(limit['measured_ms'])}, measured"
