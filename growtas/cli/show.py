"""``growtas show``: one run's curves, time and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import Notes, console, note, print_json


def show(
    run: Annotated[Path | None, Argument(help="The run's folder, by default the newest in ./runs.")] = None,
    png: Annotated[Path | None, Option(help="Draw the curves into this PNG file too (needs growtas\\[watch]).")] = None,
    json_: options.Json = False,
) -> None:
    """Show how a training goes or went.

    The curves of loss, learning rate and accuracies with the stages' boundaries, where the time goes, and which checkpoints are
    kept; of a training that still runs, when it will be done.

    Example: growtas show --png curves.png
    """
    from growtas.runs import find_readable_run
    from growtas.watch.report import Report
    from growtas.watch.terminal import print_report

    report = Report.of(find_readable_run(run, Notes()))
    if png is not None:
        from growtas.watch.pictures import draw_png

        draw_png(report, png)
    if json_:
        print_json(report.to_dict())
        return
    print_report(report, console())
    if png is not None:
        note(f"written to {png}")
