"""Output of commands: tables on stdout and notes on stderr for people, or one JSON document on stdout for programs."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import typer
from rich.cells import cell_len

from growtas.escapes import escape
from growtas.files import json_text
from growtas.progress import Progress

if TYPE_CHECKING:
    from rich.progress import ProgressColumn
    from rich.table import Table

    from growtas.cli.screen import Screen

MAIN = os.environ.get("RANK", "0") == "0"
"""Whether this process prints: of the processes that torchrun started, only rank 0 does."""
_READABLE = 24
"""Least width of a column of sentences, in characters."""


@cache
def console(*, stderr: bool = False, width: int | None = None) -> Screen:
    """Returns the screen of stdout for results, or the one of stderr for progress bars."""
    from growtas.cli.screen import Screen

    return Screen(stderr=stderr, quiet=not MAIN, width=width)


def new_table(*headings: str, right: Collection[str] = (), fold: str | None = None) -> Table:
    """An empty table without borders, for :func:`print_table`.

    Args:
        right: headings of the right-aligned columns.
        fold: heading of the column of sentences, which wraps on a narrow terminal.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", no_wrap=heading != fold, overflow="fold")
    return table


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Prints name-value pairs on stdout, one per line; on a terminal long values wrap."""
    from growtas.watch.terminal import fact_lines

    for line in fact_lines([(name, value, "") for name, value in facts], _width()):
        console().print(line, soft_wrap=True)


def print_line(text: str = "") -> None:
    """Prints one line on stdout; it does not wrap, and a line break in it is shown escaped."""
    console().print(text, soft_wrap=True)


def print_lines(text: str) -> None:
    """Prints text of several lines on stdout, line by line."""
    for line in text.splitlines():
        print_line(line)


def print_text(text: str) -> None:
    """Prints sentences on stdout; on a terminal they wrap between words."""
    from growtas.watch.terminal import fold

    for line in fold(text, _width()):
        print_line(line)


def print_table(table: Table) -> None:
    """Prints a table on stdout without ever truncating a cell.

    On a terminal that is too narrow, each row becomes several lines: its first cell, and below it the other cells with their
    headings. If stdout is not a terminal, the table is as wide as its content.
    """
    out = console() if console().is_terminal else console(width=1_000_000)
    if _least_width(table) <= out.width:
        out.print(table)
        return
    for line, style in _records(table, out.width):
        out.print(line, style=style, soft_wrap=True)


def _width() -> int | None:
    """Returns the width of the terminal in characters; None if stdout is not a terminal."""
    return console().width if console().is_terminal else None


def _least_width(table: Table) -> int:
    """Returns the width that a table needs when its sentences wrap, in characters."""
    least = 2 * (len(table.columns) - 1)
    for column in table.columns:
        texts = [escape(str(text)) for text in (column.header, *column.cells)]
        widest = max(map(cell_len, texts))
        least += widest if column.no_wrap else min(widest, max(_READABLE, *(cell_len(w) for text in texts for w in text.split())))
    return least


def _records(table: Table, width: int) -> Iterator[tuple[str, str]]:
    """Yields each row as lines and their styles: its first cell and, indented below it, the other cells after their headings."""
    from growtas.watch.terminal import fold, pack

    first, *others = table.columns
    for title, *cells in zip(first.cells, *(column.cells for column in others), strict=True):
        if str(title):
            yield str(title), "bold"
        named = ((str(column.header), str(cell)) for column, cell in zip(others, cells, strict=True))
        # A dash is an empty cell.
        entries = (f"{heading}: {cell}" if heading else cell for heading, cell in named if cell not in ("", "-"))
        for line in pack(entries, width - 2, "   "):
            yield from ((f"  {part}", "") for part in fold(line, width - 2))


def command_line(*words: str | Path, **options: str | int | Path | None) -> str:
    """Returns a growtas command, quoted for a shell.

    Args:
        options: values by option name; None and False leave the option out, and True makes it a flag.
    """
    parts = ["growtas", *map(str, words)]
    for name, value in options.items():
        if value is not None and value is not False:
            parts += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(parts)


def note(text: str) -> None:
    """Prints a note for people on stderr; it is never part of a result."""
    if MAIN:
        sys.stderr.write(f"{escape(text)}\n")
        sys.stderr.flush()


def print_json(data: Any) -> None:
    """Prints one JSON document on stdout, in UTF-8 regardless of the terminal's encoding."""
    if MAIN:
        typer.echo(json_text(data, indent=2).encode())  # noqa: TID251 (JSON escapes them, and this function prints bytes)


class Notes(Progress):
    """Progress of long work that prints only the notes, on stderr."""

    def note(self, text: str) -> None:
        """Prints a note on stderr."""
        note(text)


class ProgressBar(Notes):
    """A progress bar on stderr with the current stage and its count, and notes as lines above it; a context manager.

    Args:
        columns: the bar's columns; by default stage, bar, count and time.
        hidden: show only notes, as happens when stderr is not a terminal.
    """

    def __init__(self, *columns: ProgressColumn, hidden: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        from growtas.cli.screen import Words

        screen = console(stderr=True)
        columns = columns or (Words(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Bar(*columns, console=screen, transient=True, disable=hidden or not screen.is_terminal)
        self.task = self.bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.bar.stop()

    def note(self, text: str) -> None:
        """Prints a note, above the bar if there is one."""
        if self.bar.live.is_started and not self.bar.disable:
            self.bar.console.print(text, soft_wrap=True)
        else:
            super().note(text)

    def stage(self, name: str, total: int | None = None) -> None:
        """Restarts the bar for a new stage."""
        self.bar.remove_task(self.task)
        self.task = self.bar.add_task(name, total=total)

    def advance(self, count: int = 1) -> None:
        """Moves the bar on."""
        self.bar.advance(self.task, count)
