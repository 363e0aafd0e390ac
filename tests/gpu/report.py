"""The rows that a run on a GPU gives, and the page that shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MEASURED, FAILED, SKIPPED, RUNNING = "measured", "failed", "skipped", "running"
"""What became of a row; ``running`` stands in a file while the row's case runs, and afterwards where it did not end."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one case showed.

    Attributes:
        step: the step that the case belongs to.
        case: what was done.
        outcome: one of the words above.
        result: a sentence: what was measured, or why it failed or was skipped.
        numbers: the measured numbers, for the JSON.
    """

    step: str
    case: str
    outcome: str
    result: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)


def append_row(path: Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def read_rows(path: Path) -> list[Row]:
    """The last row of every case, in the order of their beginnings; a line that a killed process did not end is left out."""
    rows: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = Row(**json.loads(line))
        except json.JSONDecodeError:
            continue
        rows[row.case] = row
    return list(rows.values())


def table(machine: Mapping[str, str], rows: Sequence[Row]) -> str:
    """The machine in one line, and the rows as a Markdown table."""
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = [f"| {row.step} | {_cell(row.case)} | {_outcome(row)} | {_cell(row.result)} |" for row in rows]
    return "\n".join([facts, "", "| step | case | outcome | result |", "| --- | --- | --- | --- |", *lines, ""])


def add_section(page: str, title: str, text: str) -> str:
    """A page with one more section, before the sections that it has."""
    head, *sections = page.split("\n## ")
    return "\n## ".join([f"{head.rstrip()}\n", f"{title}\n\n{text}", *sections])


def _outcome(row: Row) -> str:
    return f"**{row.outcome}**" if row.outcome == FAILED else row.outcome


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")
