"""``growtas runs``: lists the runs in a folder."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from growtas.cli import options
from growtas.cli.output import new_table, note, print_json, print_table, print_text
from growtas.units import standard_error

if TYPE_CHECKING:
    from growtas.watch.report import Overview


def runs(
    root: Annotated[Path, Argument(help="Folder that holds the runs.")] = Path("runs"),
    json_: options.Json = False,
) -> None:
    """List the runs in a folder, newest first.

    It shows the accuracies of the smallest, the middle and the largest subnet: on the test images after a finished training, or on
    the search split after the last epoch of an unfinished one. A training whose process is gone is listed as stopped.

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
    headings = ("run", "state", "space", "data", "method", "epochs", "accuracy %", "when", "what is in it")
    table = new_table(*headings, right=("epochs",))
    for row in rows:
        names = (name or "-" for name in (row.space, row.data, row.method))
        texts = (row.name, row.state, *names, _epochs(row), _accuracy(row), _when(row), ", ".join(row.contents) or "-")
        table.add_row(*texts, style="red" if row.problem else "")
    print_table(table)
    for row in rows:
        if row.problem:
            print_text(f"{row.name}: {row.problem}")
    if any(row.accuracy for row in rows):
        last_epoch = (
            "; * after the last epoch, on the search split" if any(row.accuracy_on == "search split" for row in rows) else ""
        )
        error = " ± the largest standard error" if any(row.accuracy_images for row in rows) else ""
        print_text(f"accuracy: smallest / middle / largest subnet{error}, on the test images{last_epoch}")
    if any(row.state.endswith("(unchecked)") for row in rows):
        print_text("unchecked: the run doesn't record which process trains it")


def _epochs(row: Overview) -> str:
    return "-" if row.epochs is None else f"{row.epochs_done}/{row.epochs}"


def _when(row: Overview) -> str:
    return ago(datetime.datetime.fromisoformat(row.created), datetime.datetime.now().astimezone())


def _accuracy(row: Overview) -> str:
    if not row.accuracy:
        return "-"
    text = " / ".join(f"{100 * value:.1f}" for value in row.accuracy.values())
    if (count := row.accuracy_images) is not None:
        text += f" ± {100 * max(standard_error(value, count) for value in row.accuracy.values()):.1f}"
    return text + ("*" if row.accuracy_on != "test" else "")


def ago(then: datetime.datetime, now: datetime.datetime) -> str:
    """``just now``, ``5 min ago``, ``3 h ago``, ``2 d ago``; the date if it is thirty days ago or more, or in the future."""
    seconds = (now - then).total_seconds()
    if not -60 <= seconds < 30 * 86400:
        return f"{then:%Y-%m-%d}"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"
