"""HTML pages made of sections, without scripts and external files, for narrow, wide, light and dark screens and for screen readers.

``page.html`` is the template of all pages; it escapes every text. A section is a list of parts, each of a class below.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from markupsafe import Markup

from growtas.files import replacing

FOLDED_ROWS = 8
"""A table that few readers need is folded if it has at least so many rows."""


@dataclass(frozen=True)
class Text:
    """One or more sentences; a ``warning`` is highlighted."""

    kind: ClassVar[str] = "text"
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Commands:
    """Lines for a shell, under a sentence."""

    kind: ClassVar[str] = "commands"
    text: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row; without headings it lists facts.

    Attributes:
        right: headings of the columns of numbers.
        folded: shown only when the reader opens it.
    """

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[str] = ()
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption, and a legend of (class, mark, text)."""

    kind: ClassVar[str] = "figure"
    caption: str
    drawing: Markup
    legend: Sequence[tuple[str, str, str]] = ()


@dataclass(frozen=True)
class Cards:
    """The most important numbers, each as (what, number, note)."""

    kind: ClassVar[str] = "cards"
    cards: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Row:
    """Parts that stand side by side if the screen is wide enough."""

    kind: ClassVar[str] = "row"
    parts: Sequence[Part]


Part = Text | Commands | Table | Figure | Cards | Row


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading, to which the page's navigation leads."""

    name: str
    title: str
    parts: list[Part] = field(default_factory=list)


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), fold: bool = False
) -> list[Part]:
    """Returns a table as parts of a section, or no parts if it has no rows. With ``fold`` a long table is folded."""
    listed = list(rows)
    return [Table(caption, head, listed, right, folded=fold and len(listed) >= FOLDED_ROWS)] if listed else []


def write_page(path: Path, *, title: str, lead: str, sections: Sequence[Section], footer: str) -> None:
    """Writes a page; it replaces a file at ``path``.

    Raises:
        OutputError: the file can't be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("growtas.watch", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = templates.get_template("page.html").render(title=title, lead=lead, sections=sections, footer=footer)
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode("utf-8", "replace"))
