"""Writes Markdown: pages, tables and their cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class EmptyCell(ValueError):
    """A table has a cell without text: something has no description in the code."""


def page(title: str, *parts: str) -> str:
    """A page that says where it comes from."""
    head = "<!-- This page is made from the code by `make reference`; change the descriptions there. -->"
    return "\n\n".join((head, f"# {title}", *(part.strip("\n") for part in parts if part.strip()))) + "\n"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table.

    Raises:
        EmptyCell: a cell has no text.
    """
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    for row in rows:
        if not all(text.strip() for text in row):
            raise EmptyCell(f"no description: {' | '.join(row)}")
        lines.append("| " + " | ".join(cell(text) for text in row) + " |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text within a row of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def code(*names: object) -> str:
    """Names as code, divided by commas."""
    return ", ".join(f"`{name}`" for name in names)


def fence(text: str, language: str = "text") -> str:
    """A block of code."""
    return f"```{language}\n{text.strip()}\n```"


def sentence(text: str) -> str:
    """A description with a capital letter and a full stop, as cells and paragraphs have them."""
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "!", "?", ":")) else f"{text}."
