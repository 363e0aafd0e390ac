"""``growtas show``: one run's curves, time and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import console, note, print_json

if TYPE_CHECKING:
    from growtas.runs import Run


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
    """The named run, or the newest that can be read."""
    from growtas.errors import CheckpointError
    from growtas.runs import RUNS, find_run, list_runs

    for run in list_runs(RUNS) if given is None and RUNS.is_dir() else ():
        try:
            _ = run.info
        except CheckpointError as error:
            note(f"passed over: {error}")
            continue
        return run
    return find_run(given)
