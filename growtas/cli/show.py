"""``growtas show``: shows the curves, times and checkpoints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import Notes, console, note, print_json


def show(
    run: Annotated[Path | None, Argument(help="Run folder. Default: the newest in ./runs.")] = None,
    png: Annotated[Path | None, Option(help="PNG file to draw the curves to as well (needs growtas\\[watch]).")] = None,
    json_: options.Json = False,
) -> None:
    """Show the progress or the result of a training.

    It shows the curves of loss, learning rate and accuracies with the stages' boundaries, the time spent on each part of the
    work, and the kept checkpoints; for a running training also the expected end.

    Example: growtas show --png curves.png
    """
    from growtas.runs import find_readable_run
    from growtas.watch.report import Report
    from growtas.watch.terminal import print_report

    report = Report.of(find_readable_run(run, Notes()))
    if png is not None:
        from growtas.files import check_output_file
        from growtas.watch.pictures import draw_png

        draw_png(report, check_output_file(png))
    if json_:
        print_json(report.to_dict())
        return
    print_report(report, console())
    if png is not None:
        note(f"written to {png}")
