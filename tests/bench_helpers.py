"""Benchmarks of tests: notes and turns are handed to functions, and the report is the JSON that the command writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from growtas.export.benchmark import run
from growtas.export.benchmark.run import BenchOptions, TurnBegun
from growtas.progress import Progress


class Turns(Progress):
    """Calls functions with each note, and with each turn: its name, how many are done, and how many there are."""

    def __init__(self, note: Callable[[str], Any], step: Callable[[str, int, int], Any]) -> None:
        self._note, self._step, self._done, self._total = note, step, 0, 0

    def stage(self, name: str, total: int | None = None) -> None:
        self._done, self._total = 0, total or 0

    def advance(self, count: int = 1) -> None:
        self._done += count

    def event(self, event: object) -> None:
        assert isinstance(event, TurnBegun)
        self._step(event.name, self._done, self._total)

    def note(self, text: str) -> None:
        self._note(text)


def bench(
    artifacts: Sequence[Path | str],
    options: BenchOptions,
    *,
    note: Callable[[str], Any] = lambda text: None,
    step: Callable[[str, int, int], Any] = lambda name, done, total: None,
) -> dict[str, Any]:
    """The report of :func:`growtas.export.benchmark.run.bench` as JSON data."""
    return run.bench(artifacts, options, progress=Turns(note, step)).to_dict()
