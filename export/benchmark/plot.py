"""Draws a bench report: latencies as bars with their range over the rounds, and throughput against batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from growtas.errors import MissingExtra
from growtas.export.runtimes.base import is_installed
from growtas.files import replacing


def require_matplotlib() -> None:
    """Checks before the measurement that matplotlib is installed.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    if not is_installed("matplotlib"):
        raise MissingExtra("matplotlib", "watch", "drawing a picture")


def draw_png(report: dict[str, Any], path: Path) -> None:
    """Draws the measurements into a PNG file; an existing file is replaced.

    Raises:
        MissingExtra: matplotlib is not installed.
        OutputError: the file can't be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    artifacts = [artifact for artifact in report["artifacts"] if artifact["results"]]
    batches = sorted({result["batch"] for artifact in artifacts for result in artifact["results"]})
    height = 1.6 + 0.28 * len(artifacts) * max(1, len(batches))
    figure = Figure(figsize=(9.6, max(3.6, height)), layout="constrained")
    FigureCanvasAgg(figure)
    bars, lines = figure.subplots(1, 2, width_ratios=(3, 2))
    ticks: list[str] = []
    for index, artifact in enumerate(artifacts):
        colour = f"C{index % 10}"
        for result in artifact["results"]:
            rounds, place = result["p50_ms_of_rounds"], len(ticks)
            spread = [[max(0.0, result["p50_ms"] - min(rounds))], [max(0.0, max(rounds) - result["p50_ms"])]]
            bars.barh(place, result["p50_ms"], xerr=spread, color=colour, height=0.75, ecolor="0.25", capsize=2)
            ticks.append(f"{artifact['label']}, batch {result['batch']}")
        throughput = [(result["batch"], result["images_per_second"]) for result in artifact["results"]]
        lines.plot(*zip(*throughput, strict=True), color=colour, marker="o", markersize=4, label=artifact["label"])
    bars.set_yticks(range(len(ticks)), ticks, fontsize=7)
    bars.invert_yaxis()
    bars.set_xlabel("ms, measured: median, and range over the rounds")
    lines.set_xlabel("batch")
    lines.set_ylabel("images/s, measured")
    lines.set_xticks(batches, [str(batch) for batch in batches])
    lines.set_ylim(bottom=0)
    if artifacts:
        figure.legend(fontsize=7, frameon=False, loc="outside lower right", ncols=2)
    for axes in (bars, lines):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    machine = report["environment"]
    figure.suptitle(f"{machine['cpu']}, {machine['threads']} threads", fontsize=9, x=0.01, ha="left")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
