"""Reads descriptions from docstrings in Google's style, so that a command and the reference pages print what the code says.

An entry of a section is ``name: description``, or ``name (type): description``; several names share an entry with commas. Besides
Google's sections there is ``Fields:``, which describes the JSON or YAML that a function writes: ``outer.inner`` is a key within an
object, and ``list[].inner`` a key of each item.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import dataclass
from typing import Any

SECTIONS = ("Args", "Attributes", "Fields", "Raises", "Returns")
_ENTRY = re.compile(r"([\w./\[\]-]+(?:, [\w./\[\]-]+)*)(?: \((.+?)\))?:(?: (.*))?$")
_ROLE = re.compile(r":\w+:`~?(.+?)`")


@dataclass(frozen=True)
class Entry:
    """An entry of a section.

    Attributes:
        names: what is described; several names share a description.
        type: the type that the docstring gives; empty where it gives none.
        text: the description, in Markdown and on one line.
    """

    names: tuple[str, ...]
    type: str
    text: str


def summary(owner: Any) -> str:
    """A docstring up to its first section, in Markdown; paragraphs and line breaks stay."""
    lines = _lines(owner)
    ends = [number for number, line in enumerate(lines) if line in {f"{section}:" for section in SECTIONS}]
    return markdown("\n".join(lines[: min(ends, default=len(lines))]).strip())


def section(owner: Any, name: str) -> str:
    """The text of a section, in Markdown; empty where there is none."""
    return markdown("\n".join(_section(owner, name)).strip())


def entries(owner: Any, name: str) -> list[Entry]:
    """The entries of a section, in order.

    Raises:
        ValueError: a line of the section is no entry; the message names the line and its owner.
    """
    found: list[tuple[str, str, list[str]]] = []
    for line in _section(owner, name):
        if found and (not line or line[0].isspace()):
            found[-1][2].append(line.strip())
        elif line:
            match = _ENTRY.match(line)
            if match is None:
                raise ValueError(f"{owner!r}: {line!r} in the section {name} is not 'name: description'")
            found.append((match[1], match[2] or "", [match[3] or ""]))
    return [Entry(tuple(names.split(", ")), kind, markdown(" ".join(filter(None, text)))) for names, kind, text in found]


def descriptions(owner: Any, name: str = "Attributes") -> dict[str, str]:
    """The descriptions of a section by name."""
    return {each: entry.text for entry in entries(owner, name) for each in entry.names}


def markdown(text: str) -> str:
    """Text with Markdown's marks for code in place of those of reStructuredText."""
    return _ROLE.sub(r"`\1`", text).replace("``", "`")


def _lines(owner: Any) -> list[str]:
    text = owner if isinstance(owner, str) else getattr(owner, "__doc__", None)
    return inspect.cleandoc(text or "").splitlines()


def _section(owner: Any, name: str) -> list[str]:
    """The lines of a section, without their common indentation."""
    lines = _lines(owner)
    if f"{name}:" not in lines:
        return []
    rest = lines[lines.index(f"{name}:") + 1 :]
    end = next((number for number, line in enumerate(rest) if line and not line[0].isspace()), len(rest))
    return textwrap.dedent("\n".join(rest[:end])).splitlines()
