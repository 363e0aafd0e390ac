"""``growtas runs``: what is in a folder of runs."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from growtas.cli import options
from growtas.cli.output import console, note, print_json, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from growtas.watch.overview import Overview


def runs(
    root: Annotated[Path, Argument(help="Folder that holds the runs.")] = Path("runs"),
    json_: options.Json = False,
) -> None:
    """List the runs in a folder, newest first.

    Accuracies are those of the smallest, the middle and the largest subnet: on the test images once a training is finished, else
    those of the last epoch on the search split. A training whose process is gone is listed as stopped.

    Example: growtas runs
    """
    from growtas.runs import list_runs
    from growtas.watch.overview import Overview

    rows = [Overview.of(run) for run in list_runs(root)]
    if json_:
        print_json({"root": str(root), "runs": [row.to_dict() for row in rows]})
        return
    if not rows:
        note(f"no run in {root}/; make one with `growtas train`")
        return
    _print(rows)


def _print(rows: list[Overview]) -> None:
    from rich.measure import Measurement

    screen = console()
    wide = _wide(rows)
    fits = Measurement.get(screen, screen.options.update(max_width=10_000), wide).maximum <= screen.width
    print_table(wide if fits or not screen.is_terminal else _stacked(rows))
    for row in rows:
        if row.problem:
            screen.print(f"{row.name}: {row.problem}", soft_wrap=True, markup=False)
    if any(row.accuracy_on == "search split" for row in rows):
        measured_on = "on the test images; with * of the last epoch, on the search split"
    else:
        measured_on = "on the test images"
    if any(row.accuracy for row in rows):
        screen.print(f"accuracy: smallest / middle / largest subnet, {measured_on}", soft_wrap=True)
    if any(row.state.endswith("(unchecked)") for row in rows):
        screen.print("unchecked: which process trains the run is not recorded", soft_wrap=True)


def _wide(rows: list[Overview]) -> Table:
    """A line a run."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("run", "state", "space", "data", "method", "epochs", "accuracy %", "when", "what is in it"):
        table.add_column(heading, justify="right" if heading == "epochs" else "left", no_wrap=True)
    for row in rows:
        texts = (
            row.name,
            row.state,
            row.space or "-",
            row.data or "-",
            row.method or "-",
            _epochs(row),
            _accuracy(row),
            _when(row),
            ", ".join(row.contents) or "-",
        )
        table.add_row(*(Text(text, "red" if row.problem else "") for text in texts))
    return table


def _stacked(rows: list[Overview]) -> Table:
    """Two lines a run, for a narrow terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("run\nspace, data, method", "state\nepochs, when", "accuracy %\nwhat is in it"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        first = (row.name, row.state, _accuracy(row))
        when = _when(row) if row.epochs is None else f"{_epochs(row)}, {_when(row)}"
        second = (", ".join(filter(None, (row.space, row.data, row.method))), when, ", ".join(row.contents))
        style = "red" if row.problem else "bold"
        table.add_row(*(Text.assemble((a, style), "\n", b) for a, b in zip(first, second, strict=True)))
    return table


def _epochs(row: Overview) -> str:
    return "-" if row.epochs is None else f"{row.epochs_done}/{row.epochs}"


def _when(row: Overview) -> str:
    return ago(datetime.datetime.fromisoformat(row.created), datetime.datetime.now().astimezone())


def _accuracy(row: Overview) -> str:
    if not row.accuracy:
        return "-"
    return " / ".join(f"{100 * value:.1f}" for value in row.accuracy.values()) + ("*" if row.accuracy_on != "test" else "")


def ago(then: datetime.datetime, now: datetime.datetime) -> str:
    """``just now``, ``5 min ago``, ``3 h ago``, ``2 d ago``; the date from thirty days on, or where it lies ahead."""
    seconds = (now - then).total_seconds()
    if not -60 <= seconds < 30 * 86400:
        return f"{then:%Y-%m-%d}"
    if seconds < 60:
        return "just now"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    raise AssertionError("unreachable")
