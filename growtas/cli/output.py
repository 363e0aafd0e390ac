"""What commands print: tables and notes for people on stderr/stdout, one JSON document on stdout for machines."""

from __future__ import annotations

import json
import os
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer

from growtas.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn
    from rich.table import Table

MAIN = os.environ.get("RANK", "0") == "0"
"""Whether this process talks: among those that torchrun started, only number 0 does."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of tables.")]


@cache
def console() -> Console:
    """The console for tables and results (stdout)."""
    from rich.console import Console

    return Console(highlight=False, quiet=not MAIN)


@cache
def progress_console() -> Console:
    """The console for progress bars and notes (stderr), so that stdout stays clean for results."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, quiet=not MAIN)


def progress(*columns: ProgressColumn, hidden: bool) -> Bars:
    """A progress display on stderr that goes when it is done; ``hidden``, and where stderr is no terminal, it shows nothing."""
    from rich.progress import Progress as Bars

    screen = progress_console()
    return Bars(*columns, console=screen, transient=True, disable=hidden or not screen.is_terminal)


class Spinner(Progress):
    """A spinner on stderr that names what is being done, and notes below it; no spinner where stderr is no terminal."""

    def __init__(self, *, hidden: bool) -> None:
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), hidden=hidden)

    def __enter__(self) -> Spinner:
        self._progress.start()
        self._task = self._progress.add_task("starting", total=None)
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def stage(self, name: str, total: int | None = None) -> None:
        """Shows what is being done now."""
        self._progress.update(self._task, description=name)

    def note(self, text: str) -> None:
        """Prints a remark."""
        note(text)


def print_table(table: Table) -> None:
    """A table on stdout, as wide as its content where stdout is no terminal: what programs and logs read must not be cut."""
    out = console()
    if not out.is_terminal:
        from rich.console import Console
        from rich.measure import Measurement

        wide = out.options.update(max_width=10_000)
        out = Console(highlight=False, quiet=not MAIN, width=max(out.width, Measurement.get(out, wide, table).maximum))
    out.print(table)


def note(text: str) -> None:
    """A remark on stderr, for people; never part of a result."""
    if MAIN:
        typer.echo(text, err=True)


class Notes(Progress):
    """Prints the notes of long work on stderr, and nothing else of it."""

    def note(self, text: str) -> None:
        """Print it."""
        note(text)


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    if MAIN:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
