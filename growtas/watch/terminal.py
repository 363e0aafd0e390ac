"""Prints the report of a run in the terminal: facts, curves, times and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, JustifyMethod, RenderableType  # noqa: TID251 (the type only)
from rich.table import Table
from rich.text import Text  # noqa: TID251 (names are escaped here)

from growtas.escapes import escape
from growtas.units import format_bytes, format_count, format_seconds
from growtas.watch.chart import Chart, charts, epoch_ticks, segments, thin
from growtas.watch.facts import facts
from growtas.watch.report import Report

_COLOURS = ("green", "yellow", "red", "cyan", "magenta", "blue")
_MARKS = "*+ox#@"
_ASCII = str.maketrans(
    {
        **dict.fromkeys("\u2502\u250a\u2506\u254e", "|"),
        **dict.fromkeys("\u2500\u2504", "-"),
        **dict.fromkeys("\u2510\u250c\u2514\u2518\u251c\u2524\u252c\u2534\u253c", "+"),
    }
)
_SIDE_BY_SIDE = 100
"""Two charts stand side by side if the terminal has at least so many columns."""


def print_report(report: Report, console: Console) -> None:
    """Prints a report as wide as the console, without colours if the console has none."""
    # A path is not folded, so that it can be copied.
    console.print(escape(str(report.run.path)), style="bold", markup=False, soft_wrap=True)
    for line in fact_lines(facts(report), console.width):
        console.print(line, soft_wrap=True)
    for renderable in _renderables(report, console):
        console.print(renderable, markup=False)


def fold(text: str, width: int | None) -> list[str]:
    """Breaks text into lines between words only; a path or a number stays whole even if it is wider than ``width``.

    Characters that a terminal obeys are escaped.

    Args:
        width: columns; None leaves the text in one line.
    """
    text = escape(text)
    if width is None or cell_len(text) <= width:
        return [text]
    return pack(text.split(), width)


def pack(parts: Iterable[str], width: int, gap: str = " ") -> list[str]:
    """Joins parts into lines of at most ``width`` columns; a wider part gets its own line."""
    lines: list[str] = []
    for part in parts:
        if lines and cell_len(longer := lines[-1] + gap + part) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def fact_lines(listed: Sequence[tuple[str, str, str]], width: int | None) -> Iterator[Text]:
    """Returns the lines of facts (name, value, style); :func:`fold` breaks long values."""
    indent = max((cell_len(escape(name)) for name, _, _ in listed), default=0) + 2
    for name, value, style in ((escape(name), value, style) for name, value, style in listed):
        label = name + " " * (indent - cell_len(name))
        for line in fold(value, None if width is None else width - indent) or [""]:
            yield Text.assemble((label, "dim"), (line, style))
            label = " " * indent


def _renderables(report: Report, console: Console) -> Iterator[RenderableType]:
    yield from _chart_grid(charts(report), console)
    if report.metrics.lines:
        yield ""
        yield from _time_spent(report, plain=console.options.ascii_only)
    if report.checkpoints:
        yield ""
        yield _checkpoints(report)


def draw(chart: Chart, width: int, height: int, *, plain: bool = False) -> Text:
    """Draws a chart as lines of text of at most ``width`` columns, with the name and last value of each curve at its right end.

    Args:
        chart: the chart; if it has no finite value, the text says so.
        width: columns of the text including labels, at least 40.
        height: rows of the drawing, without title and time axis.
        plain: ASCII only.
    """
    title = Text(chart.title, "bold")
    if not chart.drawn:
        return Text("\n").join([title, Text("nothing measured yet", "dim")])
    import plotext

    (first, last), ticks, count = chart.epochs, chart.ticks(min(height // 2, 5)), len(chart.drawn)
    low, high = ticks[0], ticks[-1]
    # With this number of rows, every tick lies at the same place in its row.
    height = (len(ticks) - 1) * max((height - 1) // (len(ticks) - 1), 1) + 1
    names = [chart.tick_text(tick) for tick in ticks]
    # The drawing keeps ten columns; labels too long for the rest are cut.
    right = min(max(len(chart.label(series)) for series in chart.drawn) + 1, width - max(map(len, names)) - 11)
    figure = plotext.figure
    figure.clear()
    plotext.terminal.limit(False, False)
    figure.theme("colorless")
    figure.plot_size(width - right, height + 2)
    figure.axes(True, "default", axis="both", side=0)
    figure.axes(False, axis="both", side=1)
    figure.ruler("y").lim(0, 1).ticks([(tick - low) / (high - low) for tick in ticks], names)
    # One epoch alone stands in the middle.
    figure.ruler("x").lim(*((first, last) if last > first else (first - 1, first + 1)))
    epochs = epoch_ticks(first, last, (width - right) // 9)
    figure.ruler("x").ticks(epochs, [str(epoch) for epoch in epochs])
    for epoch, _ in chart.inner_boundaries:
        figure.line(epoch - 0.5, orientation="vertical", style="dotted", pixel="default")
    labels = list[tuple[float, str, str]]()
    for index, series in enumerate(chart.drawn):
        # The last of the curves gets the first colour, so that the largest subnet looks alike in every chart.
        colour = _COLOURS[(count - 1 - index) % len(_COLOURS)]
        for points in segments(thin(series, 2 * width)):
            mark = _MARKS[index % len(_MARKS)] if plain else "braille" if len(points) > 1 else "\u25cf"
            values = [(value - low) / (high - low) for _, value in points]
            drawn = figure.signal([epoch for epoch, _ in points], values, marker=plotext.marker(mark, pixel=colour))
            figure.draw(drawn.lines() if len(points) > 1 else drawn)
        assert series.last is not None
        labels.append(((high - series.last) / (high - low) * (height - 1), chart.label(series)[: right - 1], colour))
    text = str(figure.build())
    lines = [Text.from_ansi(line, no_wrap=True) for line in (text.translate(_ASCII) if plain else text).splitlines()]
    for line in lines:
        line.truncate(width - right, pad=True)
    for row, label, colour in _apart(sorted(labels), height):
        lines[row].append(f" {label}", colour)
    stages = ", ".join(f"{text} from epoch {epoch}" for epoch, text in chart.inner_boundaries)
    if stages and len(chart.title) + len(stages) + 3 <= width:
        title.append(f"   {stages}", "not bold dim")
    return Text("\n").join([title, *lines])


def _apart(labels: list[tuple[float, str, str]], height: int) -> Iterator[tuple[int, str, str]]:
    """Returns a row for each label near the end of its curve, in the given order; surplus labels are dropped."""
    before = -1
    for index, (row, label, colour) in enumerate(labels[:height]):
        before = max(min(round(row), height - min(len(labels), height) + index), before + 1)
        yield before, label, colour


def _chart_grid(curves: list[Chart], console: Console) -> Iterator[RenderableType]:
    width, plain = max(console.width, 40), console.options.ascii_only
    columns = 2 if width >= _SIDE_BY_SIDE else 1
    gap = 3 * (columns - 1)
    chart_width = (width - gap) // columns
    for start in range(0, len(curves), columns):
        row = curves[start : start + columns]
        grid = Table.grid(padding=(0, gap, 0, 0))
        high = 11 if row[0].percent or gap else 5 if row[0].title == "learning rate" else 9
        texts = [draw(chart, chart_width, high, plain=plain) for chart in row]
        for text in texts:
            text.no_wrap, text.overflow = True, "crop"
            grid.add_column(width=chart_width, no_wrap=True)
        grid.add_row(*texts)
        yield ""
        yield grid


def _time_spent(report: Report, *, plain: bool) -> Iterator[RenderableType]:
    metrics = report.metrics
    spent = metrics.time()
    total = sum(spent.values())
    if total:
        table = _titled_table("time", "right", "left", "right")
        for activity, seconds in spent.items():
            bar = ("#" if plain else "█") * round(30 * seconds / total)
            table.add_row(Text(escape(activity), "not bold"), f"{seconds / total:.1%}", bar, format_seconds(seconds))
        yield table
    rate, compute = metrics.images_per_second(), metrics.compute()
    parts = [f"{rate['median']:,.0f} images/s (median; last epoch {rate['last']:,.0f})"] if rate else []
    for key, what in (("macs", "MACs of training"), ("extra_macs", "MACs of teachers and the method itself")):
        if compute.get(key):
            parts.append(f"{format_count(compute[key])} {what}")
    if compute.get("passes"):
        parts.append(f"{compute['passes']:,.0f} passes")
    if parts:
        yield ", ".join(parts)


def _checkpoints(report: Report) -> RenderableType:
    table = _titled_table("checkpoints", "left", "right", "left")
    for checkpoint in report.checkpoints:
        score = "" if checkpoint.score is None else f"mean accuracy {checkpoint.score:.2%}"
        table.add_row(Text(escape(checkpoint.path.name), "not bold"), checkpoint.kind, format_bytes(checkpoint.bytes), score)
    best = report.metrics.best()
    if best is not None and not any(checkpoint.kind == "best" for checkpoint in report.checkpoints):
        table.add_row(Text("best epoch", "not bold"), str(best[0]), "", f"mean accuracy {best[1]:.2%}")
    return table


def _titled_table(title: str, *justify: JustifyMethod) -> Table:
    """A table whose first column is bold, with its title in the first row."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    for method in justify:
        table.add_column(justify=method)
    table.add_row(title)
    return table
