"""PNG pictures of trainings and searches; they need matplotlib."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.errors import MissingExtra, UsageError
from growtas.escapes import escape
from growtas.files import replacing
from growtas.units import format_accuracy, format_seconds
from growtas.watch.chart import Chart, charts, segments
from growtas.watch.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from growtas.watch.search_report import CostPlane

_COLOURS = ("#1b7837", "#d9881c", "#b2182b", "#2166ac", "#762a83", "#5a5a5a")
_DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_png(report: Report, path: Path) -> None:
    """Draw a run's curves and where its time went.

    Args:
        path: the picture; a file there is replaced.

    Raises:
        MissingExtra: the package matplotlib is not installed.
        UsageError: the run has no metrics, or the file's name doesn't end in ``.png``.
        OutputError: the place can't be written.
    """
    curves = charts(report)
    if path.suffix.lower() != ".png":
        raise UsageError(f"--png {path}: the picture's name must end in .png")
    if not curves:
        raise UsageError(f"{report.run.path}: the run has no epoch to draw")
    spent = report.metrics.time()
    panels = len(curves) + bool(spent)
    columns = min(panels, 2)
    rows = -(-panels // columns)
    with _drawing(path, 5.6 * columns, 3.2 * rows + 0.5) as figure:
        figure.suptitle(_title(report), fontsize=11)
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for chart in curves:
            _draw_chart(next(axes), chart)
        if spent:
            _draw_time(next(axes), spent)
        for unused in axes:
            unused.set_axis_off()


def draw_search_png(plane: CostPlane, space: str, images: int | None, path: Path) -> None:
    """Draw every evaluated subnet of the space of this name over a cost; a file at ``path`` is replaced.

    Args:
        images: how many the accuracies were measured on, None where that is not known.

    Raises:
        MissingExtra: matplotlib is not installed.
        OutputError: the place can't be written.
    """
    with _drawing(path, 7.2, 4.6) as figure:
        _draw_search(figure.subplots(), plane, space, images)


def _draw_search(axes: Axes, plane: CostPlane, space: str, images: int | None) -> None:
    accuracies = [100 * value for value in plane.accuracies]
    axes.scatter(plane.costs, accuracies, s=9, color="0.55", label=f"{len(accuracies)} evaluated", linewidths=0)
    costs, best = ([values[row] for row in plane.front] for values in (plane.costs, accuracies))
    axes.plot(costs, best, color="#2166ac", linewidth=1.3, marker="o", markersize=3, label="front", drawstyle="steps-post")
    if plane.limit is not None:
        look: dict[str, Any] = {"color": "#b2182b", "linewidth": 1.2, "linestyle": "--", "label": plane.limit_text}
        left, right = plane.cost_range
        if left <= plane.limit <= right:
            axes.axvline(plane.limit, **look)
        else:
            axes.plot([], [], **look)
    for meets, marker, colour in ((True, "D", "#1b7837"), (False, "x", "#b2182b")):
        points = [(ms, 100 * accuracy) for ms, accuracy, within in plane.measured if within is meets]
        if points:
            label = f"finalist measured {'within' if meets else 'beyond'} the limits"
            x, y = ([point[column] for point in points] for column in (0, 1))
            axes.scatter(x, y, s=36, marker=marker, color=colour, zorder=3, label=label)
    if (row := plane.chosen_row) is not None:
        label = f"found: {format_accuracy(plane.accuracies[row], images)}, {plane.format_cost(plane.costs[row], with_kind=True)}"
        axes.scatter(
            [plane.costs[row]], [accuracies[row]], s=110, marker="*", color="#d9881c", edgecolors="0.2", zorder=4, label=label
        )
    axes.set_xlim(*plane.cost_range)
    if not plane.kind:
        axes.xaxis.set_major_formatter(lambda cost, _: plane.format_cost(cost))
    axes.set_xlabel(escape(plane.axis))
    axes.set_ylabel("accuracy on the search split, %")
    axes.set_title(escape(f"search of {space}"), fontsize=10, loc="left")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)


def _title(report: Report) -> str:
    total = "" if report.epochs is None else f" of {report.epochs}"
    return escape(f"{report.run.path.resolve().name}: {report.state}, {report.metrics.done}{total} epochs")


def _draw_chart(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator

    factor = 100.0 if chart.percent else 1.0
    for index, series in enumerate(chart.drawn):
        place = len(chart.drawn) - 1 - index
        look: dict[str, Any] = {"color": _COLOURS[place % len(_COLOURS)], "linestyle": _DASHES[place % len(_DASHES)]}
        values = [factor * value for value in series.values]
        axes.plot(
            series.epochs,
            values,
            label=chart.label(series),
            linewidth=1.6,
            marker="o" if any(len(part) == 1 for part in segments(series)) else None,
            markersize=3,
            **look,
        )
    for epoch, text in chart.boundaries:
        axes.axvline(epoch - 0.5, color="0.6", linewidth=0.9, linestyle=":")
        axes.annotate(
            text, (epoch - 0.5, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -3), textcoords="offset points",
            va="top", fontsize=7.5, color="0.4",
        )  # fmt: skip
    axes.set_title(chart.title if chart.named else f"{chart.title}: {chart.label(chart.drawn[0])}", fontsize=10, loc="left")
    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    if chart.percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if chart.named:
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], fontsize=8, frameon=False)


def _draw_time(axes: Axes, spent: dict[str, float]) -> None:
    total = sum(spent.values())
    shares = [100 * seconds / total for seconds in spent.values()] if total else [0.0] * len(spent)
    bars = axes.barh(list(map(escape, spent)), shares, color="#6b8fb5", height=0.65)
    texts = [f"{share:.1f}%, {format_seconds(seconds)}" for share, seconds in zip(shares, spent.values(), strict=True)]
    axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_title("where the time goes", fontsize=10, loc="left")
    axes.set_xlim(0, max(shares, default=0.0) * 1.45 or 1)
    axes.set_xticks([])
    axes.tick_params(labelsize=8, length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


@contextlib.contextmanager
def _drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yields an empty figure of a size in inches, and writes it at the end; a dollar in its texts does not begin a formula."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "watch", "drawing a picture") from None
    with matplotlib.rc_context({"text.parse_math": False}):
        # A canvas of its own rather than pyplot: nothing global, and no window system is looked for.
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130)
