"""The curves of a run and the ticks of axes, shared by the terminal, the HTML page and the PNG picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from growtas.escapes import escape
from growtas.watch.metrics import Series
from growtas.watch.report import Report


@dataclass(frozen=True)
class Chart:
    """What to draw.

    Attributes:
        title: above the chart.
        series: the curves.
        form: a value as text, for the labels.
        boundaries: (epoch, text) of vertical lines, each drawn half an epoch before.
        percent: the values are shares of one, and the axis is in percent.
    """

    title: str
    series: Sequence[Series]
    form: Callable[[float], str]
    boundaries: Sequence[tuple[int, str]] = ()
    percent: bool = False

    @property
    def named(self) -> bool:
        """Whether the curves need names: there are several, or one of a subnet, to which the next epoch may add more."""
        return self.percent or len(self.series) > 1

    @property
    def drawn(self) -> list[Series]:
        """The curves that have a finite value."""
        return [series for series in self.series if series.last is not None]

    @property
    def epochs(self) -> tuple[int, int]:
        """The first and the last epoch; at least one curve must be drawn."""
        epochs = [epoch for series in self.drawn for epoch in series.epochs]
        return min(epochs), max(epochs)

    @property
    def inner_boundaries(self) -> list[tuple[int, str]]:
        """The boundaries that lie between two epochs of the chart."""
        first, last = self.epochs
        return [(epoch, text) for epoch, text in self.boundaries if first < epoch <= last]

    def ticks(self, most: int) -> list[float]:
        """Two or more round values, at most about ``most``, whose ends enclose the curves."""
        finite = [value for series in self.drawn for value in series.values if math.isfinite(value)]
        low, high = min(finite), max(finite)
        if high - low < 1e-9 * max(abs(low), abs(high), 1e-12):
            pad = abs(high) * 0.1 or 0.5
            low, high = low - pad, high + pad
        step = round_step((high - low) / max(most, 1))
        return [number * step for number in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]

    def tick_text(self, tick: float) -> str:
        """Formats the value of a tick."""
        return f"{100 * tick:.10g}%" if self.percent else f"{tick:.10g}"

    def label(self, series: Series) -> str:
        """Returns the label at the end of a curve: its last value, and its name, escaped, if it needs one."""
        assert series.last is not None
        return f"{escape(series.label)} {self.form(series.last)}" if self.named else self.form(series.last)


def charts(report: Report) -> list[Chart]:
    """The curves of a run that have values: loss, learning rate, accuracy of the followed subnets, and of the probes."""
    metrics = report.metrics
    boundaries = [(epoch, f"stage {stage}") for stage, epoch in metrics.stages[1:]]
    curves = [
        Chart("loss", [metrics.series("loss")], lambda value: f"{value:.3g}", boundaries),
        Chart("learning rate", [metrics.series("lr")], lambda value: f"{value:.2g}", boundaries),
        Chart("accuracy, search split", metrics.group("accuracy"), _percent, boundaries, percent=True),
        Chart("accuracy of the probes, search split", metrics.group("probes"), _percent, boundaries, percent=True),
    ]
    return [chart for chart in curves if chart.drawn]


def thin(series: Series, most: int) -> Series:
    """Returns a series of at most ``most`` points; each is the mean of neighbours, without values that are not finite."""
    size = -(-len(series.epochs) // most)
    if size <= 1:
        return series
    epochs, values = [], []
    for start in range(0, len(series.epochs), size):
        part = slice(start, start + size)
        finite = [value for value in series.values[part] if math.isfinite(value)]
        epochs.append(round(statistics.fmean(series.epochs[part])))
        values.append(statistics.fmean(finite) if finite else math.nan)
    return Series(series.label, tuple(epochs), tuple(values))


def segments(series: Series) -> list[list[tuple[int, float]]]:
    """Returns the points (epoch, value) of a curve, split at values that are not finite."""
    parts: list[list[tuple[int, float]]] = [[]]
    for epoch, value in zip(series.epochs, series.values, strict=True):
        if math.isfinite(value):
            parts[-1].append((epoch, value))
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def ticks_within(low: float, high: float, most: int) -> list[float]:
    """Round values between two ends, at most about ``most``."""
    step = round_step((high - low) / max(most, 1))
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def epoch_ticks(first: int, last: int, most: int) -> list[int]:
    """Returns the first and the last epoch, and round ones between them at a distance."""
    if first == last:
        return [first]
    step = max(1, round(round_step((last - first) / max(most, 1))))
    inner = range(-(-(first + 1) // step) * step, last, step)
    return [first, *(epoch for epoch in inner if min(epoch - first, last - epoch) >= 0.6 * step), last]


def round_step(rough: float) -> float:
    """Returns the smallest value that is 1, 2 or 5 times a power of ten and at least ``rough``."""
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _percent(value: float) -> str:
    return f"{value:.1%}"
