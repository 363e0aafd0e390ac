"""A search as a picture: accuracy over latency or params, with the front, the limit and the subnet found."""

from __future__ import annotations

from pathlib import Path

from growtas.files import replacing
from growtas.watch.figure import new_figure
from growtas.watch.search_report import SearchReport


def draw_search_png(report: SearchReport, path: Path) -> None:
    """Draw every evaluated subnet; a file at ``path`` is replaced.

    Raises:
        MissingExtra: matplotlib is not installed.
        OutputError: the place can't be written.
    """
    figure = new_figure(7.2, 4.6)
    axes = figure.subplots()
    accuracies = [100 * value for value in report.accuracies]
    axes.scatter(report.costs, accuracies, s=9, color="0.7", label=f"{len(accuracies)} evaluated", linewidths=0)
    costs, best = ([values[row] for row in report.front] for values in (report.costs, accuracies))
    axes.plot(costs, best, color="#2166ac", linewidth=1.3, marker="o", markersize=3, label="front", drawstyle="steps-post")
    if report.limit is not None:
        axes.axvline(
            report.limit, color="#b2182b", linewidth=1.2, linestyle="--", label=f"limit {report.format_cost(report.limit)}"
        )
    for meets, marker, colour in ((True, "D", "#1b7837"), (False, "x", "#b2182b")):
        points = [(ms, 100 * accuracy) for ms, accuracy, within in report.measured if within is meets]
        if points:
            label = f"finalist measured {'within' if meets else 'beyond'} the limits"
            x, y = ([point[column] for point in points] for column in (0, 1))
            axes.scatter(x, y, s=36, marker=marker, color=colour, zorder=3, label=label)
    if (row := report.chosen_row) is not None:
        label = f"found: {accuracies[row]:.2f}%, {report.format_cost(report.costs[row], with_kind=True)}"
        axes.scatter(
            [report.costs[row]], [accuracies[row]], s=110, marker="*", color="#d9881c", edgecolors="0.2", zorder=4, label=label
        )
    axes.set_xlabel(report.axis)
    axes.set_ylabel("accuracy on the search split, %")
    axes.set_title(f"search of {report.space.name}", fontsize=10, loc="left")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
