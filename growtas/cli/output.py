"""Output of commands: tables and notes for people on stderr/stdout, one JSON document on stdout for machines."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import typer
from rich.cells import cell_len

from growtas.files import json_text
from growtas.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn
    from rich.table import Table
    from rich.text import Text

MAIN = os.environ.get("RANK", "0") == "0"
"""Whether this process talks: among those that torchrun started, only number 0 does."""
_READABLE = 24
"""Columns that a folded sentence needs."""


@cache
def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """The console for tables and results (stdout), or for progress bars (stderr), so that stdout stays clean for results."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, emoji=False, quiet=not MAIN, width=width)


def new_table(*headings: str, right: Collection[str] = (), fold: str | None = None) -> Table:
    """An empty table without borders, for :func:`print_table`.

    Args:
        right: headings of the columns that are aligned at the right.
        fold: heading of the column of sentences, which may go on in the next line where the terminal is narrow.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", no_wrap=heading != fold, overflow="fold")
    return table


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Names and what they stand for on stdout, one below the other; on a terminal long values go on in the next line."""
    from growtas.watch.terminal import fact_lines

    for line in fact_lines([(name, value, "") for name, value in facts], _width()):
        console().print(line, soft_wrap=True)


def print_line(text: str = "", end: str = "\n") -> None:
    """Text on stdout as it is: not folded, and brackets are no markup."""
    console().print(text, end=end, soft_wrap=True, markup=False)


def print_text(text: str) -> None:
    """Sentences on stdout; on a terminal they are folded between words."""
    from growtas.watch.terminal import fold

    print_line("\n".join(fold(text, _width())))


def print_table(table: Table) -> None:
    """A table on stdout; neither a name nor a number in it is ever cut.

    On a terminal that is too narrow, each row becomes a few lines: its first cell, and below it the others, each with its heading.
    Where stdout is no terminal, the table is as wide as its content.
    """
    out = console() if console().is_terminal else console(width=1_000_000)
    if _least_width(table) <= out.width:
        out.print(table, markup=False)
        return
    for line in _records(table, out.width):
        out.print(line, soft_wrap=True)


def _width() -> int | None:
    """Columns of the terminal that stdout is; None where it is none."""
    return console().width if console().is_terminal else None


def _least_width(table: Table) -> int:
    """The columns that a table needs if its sentences are folded."""
    least = 2 * (len(table.columns) - 1)
    for column in table.columns:
        texts = [str(text) for text in (column.header, *column.cells)]
        widest = max(map(cell_len, texts))
        least += widest if column.no_wrap else min(widest, max(_READABLE, *(cell_len(w) for text in texts for w in text.split())))
    return least


def _records(table: Table, width: int) -> Iterator[Text]:
    """The rows of a table, each as its first cell and, below it and indented, its other cells behind their headings."""
    from rich.text import Text

    from growtas.watch.terminal import fold, pack

    first, *others = table.columns
    for title, *cells in zip(first.cells, *(column.cells for column in others), strict=True):
        if str(title):
            yield Text(str(title), "bold")
        named = ((str(column.header), str(cell)) for column, cell in zip(others, cells, strict=True))
        # A dash stands for nothing.
        entries = (f"{heading}: {cell}" if heading else cell for heading, cell in named if cell not in ("", "-"))
        for line in pack(entries, width - 2, "   "):
            yield from (Text(f"  {part}") for part in fold(line, width - 2))


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
    """One JSON document on stdout, in UTF-8 whatever the terminal's encoding is."""
    if MAIN:
        typer.echo(json_text(data, indent=2).encode())


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
