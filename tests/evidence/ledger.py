"""The ledger of the evidence: one JSON line for each finished training, in ``docs/evidence/trainings.jsonl``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError
from growtas.files import append_json_line, drop_torn_line, read_json, read_json_lines
from tests.evidence.plan import Training

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "docs" / "evidence"
LEDGER = FOLDER / "trainings.jsonl"
SUBNETS = FOLDER / "subnets.json"
"""File with the probes and the subnets of the parameter band, which were drawn once, uniformly over each dimension's choices."""

Line = Mapping[str, Any]


def read_ledger(path: Path = LEDGER) -> dict[str, Line]:
    """Reads the lines by their keys; empty without a file.

    Raises:
        CheckpointError: a line is not JSON.
    """
    return {line["key"]: line for line in read_json_lines(path)}


def missing(plan: Iterable[Training], lines: Mapping[str, Line]) -> list[Training]:
    """Returns the trainings of a plan without a line, in the plan's order."""
    return [training for training in plan if training.key not in lines]


def read_if_whole(path: Path) -> Any:
    """Reads a JSON file; returns None if it is missing or incomplete."""
    try:
        return read_json(path)
    except CheckpointError:
        return None


def append(line: Line, path: Path = LEDGER) -> None:
    """Appends a line, unless the ledger has a line with its key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drop_torn_line(path)
    if line["key"] not in read_ledger(path):
        append_json_line(path, line)
