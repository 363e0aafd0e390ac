"""Line charts for a terminal, drawn with braille dots (two by four in a character), or with ASCII where a terminal has no others.

Curves differ by their dashes, by their colour where there is colour, and by the label at their right end.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from growtas.watch.metrics import Series

_COLOURS = ("green", "yellow", "red", "cyan", "magenta", "blue")
_DASHES = ((1, 0), (4, 2), (1, 2), (5, 3), (2, 3), (1, 4))
"""Dots drawn and left out, in turn; for the last curve, the last but one and so on."""
_PLAIN = "*+ox#@"
_BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bit of the dot in column x (0..1) and row y (0..3) of a braille character, U+2800 with no dot."""
_ASCII = str.maketrans("│┤┊─┴└", "|+:-++")

Piece = tuple[str, str]
"""Text and its style."""


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
        """Whether the curves need their names: one of several, or one subnet's, of which there may be more in the next epoch."""
        return self.percent or len(self.series) > 1

    @property
    def measured(self) -> bool:
        """Whether there is anything to draw."""
        return any(series.last is not None for series in self.series)


@dataclass
class _Canvas:
    """A grid of characters with their styles that curves are drawn in; places are counted in dots from the top left.

    Attributes:
        epochs: first and last epoch, at the left and the right edge.
        values: lowest and highest value, at the bottom and the top.
    """

    width: int
    height: int
    plain: bool
    epochs: tuple[int, int]
    values: tuple[float, float]

    def __post_init__(self) -> None:
        self.rows: list[list[Piece]] = [[(" ", "")] * self.width for _ in range(self.height)]
        self.dots_x, self.dots_y = (1, 1) if self.plain else (2, 4)

    def column(self, epoch: float) -> int:
        return self.place(epoch, self.values[0])[0] // self.dots_x

    def row(self, value: float) -> int:
        return self.place(self.epochs[0], value)[1] // self.dots_y

    def place(self, epoch: float, value: float) -> tuple[int, int]:
        (first, last), (low, high) = self.epochs, self.values
        share = (epoch - first) / (last - first) if last > first else 0.5
        return round(share * (self.width * self.dots_x - 1)), round((high - value) / (high - low) * (self.height * self.dots_y - 1))

    def dot(self, x: int, y: int, style: str, char: str) -> None:
        row, column = y // self.dots_y, x // self.dots_x
        if not self.plain:
            # Of the characters used here only braille lies at or above U+2800.
            char = chr(max(ord(self.rows[row][column][0]), 0x2800) | _BRAILLE[x % 2][y % 4])
        self.rows[row][column] = (char, style)


def draw(chart: Chart, width: int, height: int, *, plain: bool = False) -> list[list[Piece]]:
    """A chart as lines of (text, style) pieces, none wider than ``width``.

    Args:
        chart: what to draw; without a finite value the chart is a line that says so.
        width: characters of the whole, labels included; 40 at least.
        height: rows of the drawing itself; title and time axis come on top.
        plain: ASCII only.
    """
    if not chart.measured:
        return [[(chart.title, "bold")], [("nothing measured yet", "dim")]]
    epochs = [epoch for series in chart.series for epoch in series.epochs]
    thinned = [thin(series, width) for series in chart.series]
    finite = [value for series in thinned for value in series.values if math.isfinite(value)]
    ticks = _ticks(min(finite), max(finite), height)
    # As many rows as put every tick into the same place of its row.
    height = (len(ticks) - 1) * max((height - 1) // (len(ticks) - 1), 1) + 1
    tick_texts = [f"{100 * tick:g}%" if chart.percent else f"{tick:g}" for tick in ticks]
    left = max(map(len, tick_texts)) + 2
    labels = _labels(chart)
    # The drawing keeps ten columns; labels too long for the rest are cut.
    right = min(max(len(" epoch"), *(len(text) for _, text, _ in labels)), width - left - 10)
    canvas = _Canvas(width - left - right, height, plain, (min(epochs), max(epochs)), (ticks[0], ticks[-1]))
    _draw_boundaries(canvas, chart)
    for index, series in enumerate(thinned):
        _draw_series(canvas, series, index, len(chart.series))
    rows_of_ticks = {canvas.row(tick): text for tick, text in zip(ticks, tick_texts, strict=True)}
    placed = _place_labels([(canvas.row(value), text[:right], style) for value, text, style in labels], height)
    lines = [[(chart.title, "bold")]]
    for row, cells in enumerate(canvas.rows):
        axis = f"{rows_of_ticks.get(row, ''):>{left - 2}} {'┤' if row in rows_of_ticks else '│'}"
        pieces = [("".join(char for char, _ in group), style) for style, group in groupby(cells, lambda cell: cell[1])]
        lines.append([(axis, "dim"), *pieces, *placed.get(row, [])])
    lines += _time_axis(canvas, left)
    return [[(text.translate(_ASCII), style) for text, style in line] for line in lines] if plain else lines


def thin(series: Series, most: int) -> Series:
    """A series of at most ``most`` points: neighbours are averaged, those that are not finite left out where others are."""
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


def _labels(chart: Chart) -> list[tuple[float, str, str]]:
    """(last value, text, style) of each curve, from high to low."""
    labels = []
    for index, series in enumerate(chart.series):
        if (last := series.last) is not None:
            text = f" {series.label} {chart.form(last)}" if chart.named else f" {chart.form(last)}"
            labels.append((last, text, _style(index, len(chart.series))))
    return sorted(labels, key=lambda label: -label[0])


def _place_labels(labels: list[tuple[int, str, str]], height: int) -> dict[int, list[Piece]]:
    """The labels by row: each has a row of its own, near its curve's end and in the given order; surplus labels are lost."""
    labels = labels[:height]
    placed: dict[int, list[Piece]] = {}
    for index, (row, text, style) in enumerate(labels):
        lowest = height - len(labels) + index
        placed[max(min(row, lowest), max(placed, default=-1) + 1)] = [(text, style)]
    return placed


def _draw_boundaries(canvas: _Canvas, chart: Chart) -> None:
    first, last = canvas.epochs
    inside = [(canvas.column(epoch - 0.5), text) for epoch, text in chart.boundaries if first < epoch <= last]
    for column, _ in inside:
        for row in canvas.rows:
            row[column] = ("┊", "dim")
    for (column, text), (following, _) in pairwise([*inside, (canvas.width, "")]):
        if len(text) < following - column - 1:
            canvas.rows[0][column + 2 : column + 2 + len(text)] = [(char, "dim") for char in text]


def _draw_series(canvas: _Canvas, series: Series, index: int, count: int) -> None:
    """Lines from point to point; a value that is not finite leaves a hole."""
    style, char = _style(index, count), _PLAIN[index % len(_PLAIN)]
    drawn, skipped = _DASHES[(count - 1 - index) % len(_DASHES)]
    points = [
        canvas.place(epoch, value) if math.isfinite(value) else None
        for epoch, value in zip(series.epochs, series.values, strict=True)
    ]
    travelled = 0
    for before, point, after in zip([None, *points[:-1]], points, [*points[1:], None], strict=True):
        if point is None:
            continue
        if before is None and after is None:
            # A whole character for a point with no neighbours: a single dot would hardly be seen.
            canvas.rows[point[1] // canvas.dots_y][point[0] // canvas.dots_x] = (char if canvas.plain else "●", style)
            continue
        for x, y in _line(before or point, point):
            if canvas.plain or travelled % (drawn + skipped) < drawn:
                canvas.dot(x, y, style, char)
            travelled += 1


def _line(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The dots after ``start`` up to ``end``; just ``end`` where they are the same."""
    width, height = end[0] - start[0], end[1] - start[1]
    steps = max(abs(width), abs(height), 1)
    for step in range(1, steps + 1):
        yield round(start[0] + width * step / steps), round(start[1] + height * step / steps)


def _ticks(low: float, high: float, height: int) -> list[float]:
    """Two or more round numbers, evenly spaced, whose ends enclose the values."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-12):
        pad = abs(high) * 0.1 or 0.5
        low, high = low - pad, high + pad
    step = _nice((high - low) / max(min(height // 2, 5), 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _time_axis(canvas: _Canvas, left: int) -> list[list[Piece]]:
    """The line below the drawing with round epochs, and their numbers."""
    first, last = canvas.epochs
    step = max(1, round(_nice((last - first) / max(canvas.width // 9, 1))))
    rule, text, end = ["─"] * canvas.width, [" "] * (canvas.width + 8), -1
    # The last epoch has its number whatever else has to give way for it.
    last_start = max(canvas.column(last) - len(str(last)) + 1, 0) if last > first else canvas.width
    for epoch in dict.fromkeys([first, *range(-(-(first + 1) // step) * step, last, step), last]):
        label, column = str(epoch), canvas.column(epoch)
        start = last_start if epoch == last and last > first else max(column - len(label) // 2, 0)
        if epoch != last and (start <= end or start + len(label) >= last_start):
            continue
        rule[column] = "┴"
        end = start + len(label)
        text[start:end] = label
    return [[(" " * (left - 1) + "└" + "".join(rule) + " epoch", "dim")], [(" " * left + "".join(text).rstrip(), "dim")]]


def _style(index: int, count: int) -> str:
    """The last of the curves gets the first colour, so that the largest subnet looks alike in every chart."""
    return _COLOURS[(count - 1 - index) % len(_COLOURS)]


def _nice(rough: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below ``rough``."""
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
