"""Reads a run's ``metrics.jsonl``: curves, stages, time per activity, and the time that is left."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from growtas.fields import whole
from growtas.files import read_json_lines
from growtas.runs import Run

_HUGE = 1e30
"""No metric is larger; sums of such numbers stay finite."""
_RECENT = 5
"""The time left is estimated from the mean duration of so many epochs."""


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        label: what it shows.
        epochs: where it was measured, ascending.
        values: what was measured there; NaN where that was not a finite number, so that the curve has a hole.
    """

    label: str
    epochs: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def last(self) -> float | None:
        """The last finite value; None if there is none."""
        return next((value for value in reversed(self.values) if math.isfinite(value)), None)


@dataclass(frozen=True)
class Metrics:
    """The epochs of a run.

    Attributes:
        lines: a mapping an epoch, ascending in ``epoch``, as the trainer wrote them; any entry but ``epoch`` may be absent.
        written: when the last line was written, in seconds since 1970; None without lines.
    """

    lines: tuple[Mapping[str, Any], ...] = ()
    written: float | None = field(default=None, compare=False)

    @classmethod
    def of(cls, run: Run) -> Metrics:
        """Read a run's metrics; a run without them has no lines.

        Of an epoch that is there twice, the later line counts.

        Raises:
            CheckpointError: a line is not JSON.
        """
        path = run.path / "metrics.jsonl"
        lines = {line["epoch"]: line for line in read_json_lines(path) if _is_epoch(line)}
        written = path.stat().st_mtime if lines else None
        return cls(tuple(lines[epoch] for epoch in sorted(lines)), written)

    @property
    def done(self) -> int:
        """Epochs that are complete."""
        return int(self.lines[-1]["epoch"]) if self.lines else 0

    def series(self, *path: str) -> Series:
        """The curve of one entry, as in ``series("loss")`` or ``series("accuracy", "smallest")``; named after the last part."""
        points = [(line["epoch"], _number(line, path)) for line in self.lines]
        known = [(epoch, value) for epoch, value in points if value is not None]
        return Series(path[-1], tuple(epoch for epoch, _ in known), tuple(value for _, value in known))

    def group(self, name: str) -> list[Series]:
        """Returns the curves of all entries of a group such as ``accuracy`` or ``probes``, in order of first appearance."""
        keys = dict.fromkeys(key for line in self.lines if isinstance(line.get(name), Mapping) for key in line[name])
        return [self.series(name, key) for key in keys]

    @cached_property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """Each stage with the first epoch that ended in it, in order."""
        known = [(line["stage"], int(line["epoch"])) for line in self.lines if isinstance(line.get("stage"), int)]
        changes = (entry for entry, before in zip(known[1:], known, strict=False) if entry[0] != before[0])
        return (*known[:1], *changes)

    @property
    def seconds(self) -> float:
        """Seconds of all epochs."""
        return math.fsum(self._finite("seconds"))

    def time(self) -> dict[str, float]:
        """Seconds of each activity over all epochs, longest first; ``other`` is the rest, if it exceeds 1 %."""
        totals = {series.label: math.fsum(v for v in series.values if math.isfinite(v)) for series in self.group("time")}
        rest = self.seconds - math.fsum(totals.values())
        if rest > 0.01 * self.seconds:
            totals["other"] = totals.get("other", 0.0) + rest
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def images_per_second(self) -> dict[str, float]:
        """Returns ``last`` and ``median`` over the epochs; empty if the rate was not measured."""
        rates = self._finite("images_per_s")
        return {"last": rates[-1], "median": statistics.median(rates)} if rates else {}

    def compute(self) -> dict[str, float]:
        """Returns sums over the epochs: ``macs``, ``extra_macs`` and ``passes``."""
        return {series.label: math.fsum(v for v in series.values if math.isfinite(v)) for series in self.group("compute")}

    def seconds_left(self, epochs: int, now: float | None = None) -> float | None:
        """Seconds until ``epochs`` epochs are done, at the pace of the last few; None before the first.

        What has passed since the last line is taken off, down to zero.

        Args:
            epochs: of the whole training.
            now: seconds since 1970; the clock's by default.
        """
        paces = self._finite("seconds")[-_RECENT:]
        if not paces or self.written is None:
            return None
        passed = max(0.0, (time.time() if now is None else now) - self.written)
        return max(0.0, (epochs - self.done) * statistics.fmean(paces) - passed)

    def best(self) -> tuple[int, float] | None:
        """(epoch, mean accuracy) of the epoch whose followed subnets have the highest mean accuracy; the first of equals."""
        means = []
        for line in self.lines:
            accuracies = line.get("accuracy")
            values = [_number(line, ("accuracy", key)) for key in accuracies] if isinstance(accuracies, Mapping) else []
            if values and all(value is not None and math.isfinite(value) for value in values):
                means.append((int(line["epoch"]), statistics.fmean(value for value in values if value is not None)))
        return max(means, key=lambda entry: (entry[1], -entry[0])) if means else None

    def not_finite(self) -> list[int]:
        """Epochs whose loss is not a finite number."""
        loss = self.series("loss")
        return [epoch for epoch, value in zip(loss.epochs, loss.values, strict=True) if not math.isfinite(value)]

    def _finite(self, key: str) -> list[float]:
        return [value for value in self.series(key).values if math.isfinite(value)]


def _is_epoch(line: Any) -> bool:
    return isinstance(line, Mapping) and whole(1, 10**9).accepts(line.get("epoch"))


def _number(line: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    """Returns the number at a path; NaN if it is huge or null (JSON has no NaN); None if it is absent or not a number."""
    value: Any = line
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= _HUGE else math.nan
