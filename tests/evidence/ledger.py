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
"""The probes, and the subnets of the parameter band: drawn once, uniformly over the choices of each dimension."""

Line = Mapping[str, Any]


def read_ledger(path: Path = LEDGER) -> dict[str, Line]:
    """The lines by their keys; none where there is no file.

    Raises:
        CheckpointError: a line is not JSON.
    """
    return {line["key"]: line for line in read_json_lines(path)}


def missing(plan: Iterable[Training], lines: Mapping[str, Line]) -> list[Training]:
    """The trainings of a plan that have no line, in its order."""
    return [training for training in plan if training.key not in lines]


def read_if_whole(path: Path) -> Any:
    """The content of a JSON file; None where there is none, or not a whole one."""
    try:
        return read_json(path)
    except CheckpointError:
        return None


def append(line: Line, path: Path = LEDGER) -> None:
    """Add a line, unless the ledger has one of its key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drop_torn_line(path)
    if line["key"] not in read_ledger(path):
        append_json_line(path, line)
