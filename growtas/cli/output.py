"""Output of commands: tables and notes for people on stderr/stdout, one JSON document on stdout for machines."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import typer

from growtas.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn
    from rich.table import Table

MAIN = os.environ.get("RANK", "0") == "0"
"""Whether this process talks: among those that torchrun started, only number 0 does."""


@cache
def console(*, stderr: bool = False) -> Console:
    """The console for tables and results (stdout), or for progress bars (stderr), so that stdout stays clean for results."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, quiet=not MAIN)


def new_table(*headings: str, right: Collection[str] = (), fold: Collection[str] = ()) -> Table:
    """An empty table without borders.

    Args:
        right: headings of the columns that are aligned at the right.
        fold: headings of the columns whose cells are folded where the terminal is too narrow; the others are cut.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading in right else "left",
            no_wrap=heading not in fold,
            overflow="fold" if heading in fold else "ellipsis",
        )
    return table


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Names and what they stand for, as a table of two columns on stdout."""
    from rich.text import Text

    table = new_table("name", "value", fold=("value",))
    table.show_header = False
    for name, value in facts:
        # As Text: a path may hold brackets, which are markup in plain strings.
        table.add_row(name, Text(value))
    print_table(table)


def print_line(text: str = "", end: str = "\n") -> None:
    """Text on stdout as it is: not folded, and brackets are no markup."""
    console().print(text, end=end, soft_wrap=True, markup=False)


def print_table(table: Table) -> None:
    """A table on stdout, as wide as its content where stdout is no terminal: what programs and logs read must not be cut."""
    out = console()
    if not out.is_terminal:
        from rich.console import Console
        from rich.measure import Measurement

        wide = out.options.update(max_width=10_000)
        out = Console(highlight=False, quiet=not MAIN, width=max(out.width, Measurement.get(out, wide, table).maximum))
    out.print(table)


def command_line(*words: str | Path, **options: str | int | Path | None) -> str:
    """A command of growtas that can be copied into a shell as it is.

    Args:
        options: by their names; those that are None or False are left out, one that is True has no value.
    """
    parts = ["growtas", *map(str, words)]
    for name, value in options.items():
        if value is not None and value is not False:
            parts += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(parts)


def note(text: str) -> None:
    """A remark on stderr, for people; never part of a result."""
    if MAIN:
        typer.echo(text, err=True)


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    if MAIN:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


class Notes(Progress):
    """Prints the notes of long work on stderr, and nothing else of it."""

    def note(self, text: str) -> None:
        """Print it."""
        note(text)


class ProgressBar(Notes):
    """A bar on stderr that names the current stage and counts its units, and notes as lines; a context manager.

    Args:
        columns: what the bar shows; by default stage, bar, count and time.
        hidden: show only notes, as where stderr is no terminal.
    """

    def __init__(self, *columns: ProgressColumn, hidden: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        screen = console(stderr=True)
        columns = columns or (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Bar(*columns, console=screen, transient=True, disable=hidden or not screen.is_terminal)
        self.task = self.bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.bar.stop()

    def note(self, text: str) -> None:
        """Prints it, above the bar where one is drawn."""
        if self.bar.live.is_started and not self.bar.disable:
            self.bar.console.print(text, soft_wrap=True, markup=False)
        else:
            super().note(text)

    def stage(self, name: str, total: int | None = None) -> None:
        """The bar begins again under another name."""
        self.bar.remove_task(self.task)
        self.task = self.bar.add_task(name, total=total)

    def advance(self, count: int = 1) -> None:
        """The bar grows."""
        self.bar.advance(self.task, count)
