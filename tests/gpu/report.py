"""The rows of a run on a GPU, and the page with their table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MEASURED, FAILED, SKIPPED, RUNNING = "measured", "failed", "skipped", "running"
"""The outcomes of a row. ``running`` is written when a case begins, and stays if the case does not end."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The result of one case.

    Attributes:
        step: name of the step.
        case: description of the case.
        outcome: ``measured``, ``failed``, ``skipped`` or ``running``.
        result: one sentence: the measurements, or the reason why the case failed or was skipped.
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
    """Reads the last row of every case, in the order in which the cases began. Incomplete lines of killed processes are ignored."""
    rows: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = Row(**json.loads(line))
        except json.JSONDecodeError:
            continue
        rows[row.case] = row
    return list(rows.values())


def table(machine: Mapping[str, str], rows: Sequence[Row]) -> str:
    """Returns the machine in one line, and the rows as a Markdown table."""
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = [f"| {row.step} | {_cell(row.case)} | {_outcome(row)} | {_cell(row.result)} |" for row in rows]
    return "\n".join([facts, "", "| step | case | outcome | result |", "| --- | --- | --- | --- |", *lines, ""])


def add_section(page: str, title: str, text: str) -> str:
    """Adds a section to a page, before its other sections."""
    head, *sections = page.split("\n## ")
    return "\n## ".join([f"{head.rstrip()}\n", f"{title}\n\n{text}", *sections])


def _outcome(row: Row) -> str:
    return f"**{row.outcome}**" if row.outcome == FAILED else row.outcome


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")
