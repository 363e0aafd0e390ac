"""``growtas show``: shows the curves, times and checkpoints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import console, note, print_json

if TYPE_CHECKING:
    from growtas.runs import Run


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
    from growtas.watch.report import Report
    from growtas.watch.terminal import print_report

    report = Report.of(_pick(run))
    if png is not None:
        from growtas.watch.pictures import draw_png

        draw_png(report, png)
    if json_:
        print_json(report.to_dict())
        return
    print_report(report, console())
    if png is not None:
        note(f"written to {png}")


def _pick(given: Path | None) -> Run:
    """Returns the given run, or the newest readable one."""
    from growtas.errors import CheckpointError
    from growtas.runs import RUNS, find_run, list_runs

    for run in list_runs(RUNS) if given is None and RUNS.is_dir() else ():
        try:
            _ = run.info
        except CheckpointError as error:
            note(f"skipped: {error}")
            continue
        return run
    return find_run(given)
