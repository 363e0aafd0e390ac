"""Line charts for a terminal, drawn with braille dots (two by four in a character), or with ASCII where a terminal has no others.

Curves differ by their dashes, by their colour where there is colour, and by the label at their right end.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from growtas.watch.metrics import Series

COLOURS = ("green", "yellow", "red", "cyan", "magenta", "blue")
_DASHES = ((1, 0), (4, 2), (1, 2), (5, 3), (2, 3), (1, 4))
"""Dots drawn and left out, in turn; for the last curve, the last but one and so on."""
_PLAIN = "*+ox#@"
_BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bit of the dot in column x (0..1) and row y (0..3) of a braille character, U+2800 with no dot."""


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
class Cell:
    """A character of a chart: what is drawn in it, and whose colour it has."""

    dots: int = 0
    char: str = " "
    style: str = ""


@dataclass
class _Canvas:
    """A grid of characters that dots can be set in; the origin is at the top left."""

    width: int
    height: int
    plain: bool
    cells: list[list[Cell]] = field(init=False)

    def __post_init__(self) -> None:
        self.cells = [[Cell() for _ in range(self.width)] for _ in range(self.height)]
        self.dots_x, self.dots_y = (1, 1) if self.plain else (2, 4)

    def dot(self, x: int, y: int, style: str, char: str) -> None:
        cell = self.cells[y // self.dots_y][x // self.dots_x]
        if self.plain:
            cell.char = char
        else:
            cell.dots |= _BRAILLE[x % 2][y % 4]
        cell.style = style

    def mark(self, x: int, y: int, style: str, char: str) -> None:
        """A whole character, for a point with no neighbours: a single dot would hardly be seen."""
        self.cells[y // self.dots_y][x // self.dots_x] = Cell(0, char, style)


def draw(chart: Chart, width: int, height: int, *, plain: bool = False) -> list[list[tuple[str, str]]]:
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
    first, last = min(epochs), max(epochs)
    thinned = [thin(series, width) for series in chart.series]
    finite = [value for series in thinned for value in series.values if math.isfinite(value)]
    ticks = _ticks(min(finite), max(finite), height)
    low, high = ticks[0], ticks[-1]
    # As many rows as put every tick into the same place of its row.
    height = (len(ticks) - 1) * max((height - 1) // (len(ticks) - 1), 1) + 1
    tick_texts = [f"{100 * tick:g}%" if chart.percent else f"{tick:g}" for tick in ticks]
    left = max(map(len, tick_texts)) + 2
    labels = _labels(chart)
    # The drawing keeps ten columns; labels too long for the rest are cut.
    right = min(max(len(" epoch"), *(len(text) for _, text, _ in labels)), width - left - 10)
    canvas = _Canvas(width - left - right, height, plain)

    dots_wide, dots_high = canvas.width * canvas.dots_x, canvas.height * canvas.dots_y

    def x_of(epoch: float) -> int:
        share = (epoch - first) / (last - first) if last > first else 0.5
        return min(max(round(share * (dots_wide - 1)), 0), dots_wide - 1)

    def y_of(value: float) -> int:
        return min(max(round((high - value) / (high - low) * (dots_high - 1)), 0), dots_high - 1)

    _draw_boundaries(canvas, chart, first, last, x_of)
    for index, series in enumerate(thinned):
        _draw_series(canvas, series, index, len(chart.series), x_of, y_of)
    rows_of_ticks = {y_of(tick) // canvas.dots_y: text for tick, text in zip(ticks, tick_texts, strict=True)}
    placed = _place_labels([(y_of(value) // canvas.dots_y, text[:right], style) for value, text, style in labels], height)
    lines = [[(chart.title, "bold")]]
    for row in range(height):
        text = rows_of_ticks.get(row)
        axis = ("|" if plain else "│") if text is None else ("+" if plain else "┤")
        line = [(f"{text or '':>{left - 2}} {axis}", "dim"), *_pieces(canvas.cells[row])]
        lines.append([*line, *placed.get(row, [])])
    lines += _time_axis(canvas, left, first, last, x_of)
    return lines


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


def _place_labels(labels: list[tuple[int, str, str]], height: int) -> dict[int, list[tuple[str, str]]]:
    """The labels by row: each has a row of its own, near its curve's end and in the given order; surplus labels are lost."""
    labels = labels[:height]
    rows: list[int] = []
    for index, (row, _, _) in enumerate(labels):
        room_below = len(labels) - 1 - index
        rows.append(max(min(row, height - 1 - room_below), rows[-1] + 1 if rows else 0))
    return {row: [(text, style)] for row, (_, text, style) in zip(rows, labels, strict=True)}


def _draw_boundaries(canvas: _Canvas, chart: Chart, first: int, last: int, x_of: Callable[[float], int]) -> None:
    inside = [(x_of(epoch - 0.5) // canvas.dots_x, text) for epoch, text in chart.boundaries if first < epoch <= last]
    for column, _ in inside:
        for row in canvas.cells:
            row[column] = Cell(0, ":" if canvas.plain else "┊", "dim")
    for (column, text), (following, _) in zip(inside, [*inside[1:], (canvas.width, "")], strict=False):
        if len(text) < following - column - 1:
            for offset, char in enumerate(text, 2):
                canvas.cells[0][column + offset] = Cell(0, char, "dim")


def _draw_series(
    canvas: _Canvas, series: Series, index: int, count: int, x_of: Callable[[float], int], y_of: Callable[[float], int]
) -> None:
    """Lines from point to point; a value that is not finite leaves a hole."""
    style, char = _style(index, count), _PLAIN[index % len(_PLAIN)]
    drawn, skipped = _DASHES[(count - 1 - index) % len(_DASHES)]
    points = [
        (x_of(epoch), y_of(value)) if math.isfinite(value) else None
        for epoch, value in zip(series.epochs, series.values, strict=True)
    ]
    travelled = 0
    for before, point, after in zip([None, *points[:-1]], points, [*points[1:], None], strict=True):
        if point is None:
            continue
        if before is None and after is None:
            canvas.mark(*point, style, char if canvas.plain else "●")
            continue
        for x, y in _line(before or point, point):
            if canvas.plain or travelled % (drawn + skipped) < drawn:
                canvas.dot(x, y, style, char)
            travelled += 1


def _line(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The dots after ``start`` up to ``end``; just ``end`` where they are the same."""
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    for step in range(1, steps + 1):
        yield (
            round(start[0] + (end[0] - start[0]) * step / steps),
            round(start[1] + (end[1] - start[1]) * step / steps),
        )


def _ticks(low: float, high: float, height: int) -> list[float]:
    """Two or more round numbers, evenly spaced, whose ends enclose the values."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-12):
        pad = abs(high) * 0.1 or 0.5
        low, high = low - pad, high + pad
    step = _nice((high - low) / max(min(height // 2, 5), 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _time_axis(canvas: _Canvas, left: int, first: int, last: int, x_of: Callable[[float], int]) -> list[list[tuple[str, str]]]:
    """The line below the drawing with round epochs, and their numbers."""
    step = max(1, round(_nice((last - first) / max(canvas.width // 9, 1))))
    epochs = [first, *range(-(-(first + 1) // step) * step, last, step), last]
    rule = ["-" if canvas.plain else "─"] * canvas.width
    text = [" "] * (canvas.width + 8)
    end = -1
    # The last epoch has its number whatever else has to give way for it.
    last_start = max(x_of(last) // canvas.dots_x - len(str(last)) + 1, 0) if last > first else canvas.width
    for epoch in dict.fromkeys(epochs):
        column = x_of(epoch) // canvas.dots_x
        label = str(epoch)
        start = last_start if epoch == last and last > first else max(column - len(label) // 2, 0)
        if epoch != last and (start <= end or start + len(label) >= last_start):
            continue
        rule[column] = "+" if canvas.plain else "┴"
        text[start : start + len(label)] = label
        end = start + len(label)
    corner = "+" if canvas.plain else "└"
    return [
        [(" " * (left - 1) + corner + "".join(rule) + " epoch", "dim")],
        [(" " * left + "".join(text).rstrip(), "dim")],
    ]


def _pieces(cells: list[Cell]) -> list[tuple[str, str]]:
    """A row of characters, neighbours of one style together."""
    pieces: list[tuple[str, str]] = []
    for cell in cells:
        char = chr(0x2800 + cell.dots) if cell.dots else cell.char
        if pieces and pieces[-1][1] == cell.style:
            pieces[-1] = (pieces[-1][0] + char, cell.style)
        else:
            pieces.append((char, cell.style))
    return pieces


def _style(index: int, count: int) -> str:
    """The last of the curves gets the first colour, so that the largest subnet looks alike in every chart."""
    return COLOURS[(count - 1 - index) % len(COLOURS)]


def _nice(rough: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below ``rough``."""
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
