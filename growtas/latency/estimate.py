"""A latency: a number with its kind, device and conditions; and the interface of the models that predict one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.units import format_limit, format_ms

Kind = Literal["measured", "modelled"]
"""What was timed, and what was not."""
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
"""The runtimes whose latencies are measured, with the precisions that are measured in each on a CPU and on a GPU."""
NO_GAIN = 0.02
"""Relative difference of two latencies that counts for nothing: measured twice, one subnet's differ by up to 1.3 %."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a latency is of.

    Attributes:
        device: name of the device.
        percentile: ``p50`` and the like.
        batch: images at once.
        precision: ``fp32``, ``tf32``, ``fp16`` or ``int8``.
        runtime: what executes the network.
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
    """A latency that can't be taken for what it is not: milliseconds with their kind and conditions.

    Attributes:
        ms: milliseconds for one batch.
        kind: ``measured``, or ``modelled`` for whatever was not timed.
        conditions: device, percentile, batch, precision and runtime.
        relative_uncertainty: half width of the interval around the number; of a measured one the margin that it was judged with, or
            None.
        unsteady: whether a measured one was taken while other work disturbed the timings; None of what was not measured.
    """

    ms: float
    kind: Kind
    conditions: Conditions
    relative_uncertainty: float | None = None
    unsteady: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, with the interval in milliseconds where the number has one."""
        data: dict[str, Any] = {"ms": self.ms, "kind": self.kind, **asdict(self.conditions)}
        if self.relative_uncertainty is not None:
            u = self.relative_uncertainty
            data |= {"relative_uncertainty": u, "interval_ms": [self.ms * (1 - u), self.ms * (1 + u)]}
        return data if self.unsteady is None else {**data, "unsteady": self.unsteady}

    def __str__(self) -> str:
        spread = f" +-{self.relative_uncertainty:.0%}" if self.relative_uncertainty is not None else ""
        return f"{format_ms(self.ms)}{spread} ({kind_text(self.kind, self.unsteady)})"


def kind_text(kind: str, unsteady: bool | None) -> str:
    """A latency's kind for people: ``measured, unsteady`` where other work disturbed the timings."""
    return f"{kind}, unsteady" if unsteady else kind


def no_faster(
    precision: str, ms: float, fp32_ms: float, kind: str, where: str = "here", *, ratio: float | None = None
) -> str | None:
    """One sentence where a precision gains nothing; None where it is faster than fp32 by more than :data:`NO_GAIN`.

    Args:
        ms, fp32_ms: milliseconds of the same network in the precision and in fp32.
        kind: of both, for people.
        ratio: of the first to the second, where it is known better than from the two.
    """
    if (ms / fp32_ms if ratio is None else ratio) <= 1 - NO_GAIN:
        return None
    return f"{precision} is no faster than fp32 {where}: {format_ms(ms)} and {format_ms(fp32_ms)} (both {kind})"


def gain_over_fp32(
    precision: str, runtime: str, ms: float, fp32_ms: float, kind: Kind, where: str, *, unsteady: bool = False
) -> dict[str, Any]:
    """What a precision gains for one network in a runtime, as JSON has it.

    Returns:
        The arguments, and ``no_faster``: the sentence of :func:`no_faster`, or None where the precision is faster.
    """
    numbers = {"runtime": runtime, "precision": precision, "ms": ms, "fp32_ms": fp32_ms, "kind": kind}
    return {**numbers, "no_faster": no_faster(precision, ms, fp32_ms, kind_text(kind, unsteady), where)}


class LatencyEstimator(Protocol):
    """Predicts latencies of subnets of one space. Must be monotone: a smaller subnet is never slower."""

    @property
    def kind(self) -> Kind:
        """``modelled`` unless the numbers are timings."""

    @property
    def conditions(self) -> Conditions:
        """What the predictions are of."""

    @property
    def relative_uncertainty(self) -> float | None:
        """Half width of the interval around a prediction."""

    def predict_ms(self, batch: SubnetBatch) -> NDArray[np.float64]:
        """Milliseconds of each subnet, shape ``(len(batch),)``."""


def limit_lines(judged: Iterable[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[str]:
    """A verdict for each artifact that a device's limit is about; one line that it was not checked where there is none.

    Args:
        judged: what each artifact is called, and the search's latency limits on it, as
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
        line += f" (then {format_ms(promised['ms'])}, {promised['kind']})"
    if limit["holds"] is None:
        return f"{line}: not checked here; {limit['unchecked_because']}"
    verdict = "holds" if limit["holds"] else "does NOT hold"
    return f"{file}: {line} {verdict}: {format_ms(limit['measured_ms'])}, measured"
