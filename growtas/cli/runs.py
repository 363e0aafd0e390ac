"""``growtas runs``: what is in a folder of runs."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from growtas.cli import options
from growtas.cli.output import console, new_table, note, print_json, print_line, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from growtas.watch.report import Overview


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
    from growtas.watch.report import Overview

    rows = [Overview.of(run) for run in list_runs(root)]
    if json_:
        print_json({"root": str(root), "runs": [row.to_dict() for row in rows]})
    elif not rows:
        note(f"no run in {root}/; make one with `growtas train`")
    else:
        _print(rows)


def _print(rows: list[Overview]) -> None:
    from rich.measure import Measurement

    screen = console()
    wide = _wide(rows)
    fits = Measurement.get(screen, screen.options.update(max_width=10_000), wide).maximum <= screen.width
    print_table(wide if fits or not screen.is_terminal else _stacked(rows))
    for row in rows:
        if row.problem:
            print_line(f"{row.name}: {row.problem}")
    if any(row.accuracy for row in rows):
        last_epoch = (
            "; with * of the last epoch, on the search split" if any(row.accuracy_on == "search split" for row in rows) else ""
        )
        print_line(f"accuracy: smallest / middle / largest subnet, on the test images{last_epoch}")
    if any(row.state.endswith("(unchecked)") for row in rows):
        print_line("unchecked: which process trains the run is not recorded")


def _wide(rows: list[Overview]) -> Table:
    """A line a run."""
    from rich.text import Text

    headings = ("run", "state", "space", "data", "method", "epochs", "accuracy %", "when", "what is in it")
    table = new_table(*headings, right=("epochs",))
    table.padding = (0, 2, 0, 0)
    for row in rows:
        names = (name or "-" for name in (row.space, row.data, row.method))
        texts = (row.name, row.state, *names, _epochs(row), _accuracy(row), _when(row), ", ".join(row.contents) or "-")
        table.add_row(*(Text(text, "red" if row.problem else "") for text in texts))
    return table


def _stacked(rows: list[Overview]) -> Table:
    """Two lines a run, for a narrow terminal."""
    from rich.text import Text

    headings = ("run\nspace, data, method", "state\nepochs, when", "accuracy %\nwhat is in it")
    table = new_table(*headings, fold=headings)
    table.padding = (0, 2, 0, 0)
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
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"
