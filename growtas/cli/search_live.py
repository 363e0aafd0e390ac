"""The display of a running ``growtas search`` on stderr: notes, the generations as a table, and a progress bar."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from growtas.cli.output import ProgressBar, console, new_table
from growtas.cli.screen import Words
from growtas.latency.measured.campaign import Sample
from growtas.search.evolution import GenerationResult
from growtas.search.scoring import DROPPED, Evaluated
from growtas.units import format_ms

_ROWS = 8
_WIDE = 72
"""Least terminal width, in characters, at which the bar also shows the elapsed time."""
_BAR = 40
"""Width of the bar with its numbers, in characters."""


class SearchDisplay(ProgressBar):
    """Shows the last generations with their best and median accuracy, the evaluations per second and the remaining time.

    Args:
        population: number of subnets per generation.
        hidden: show only notes, as happens when stderr is not a terminal.
    """

    def __init__(self, population: int, *, hidden: bool) -> None:
        left = (Words("ETA"), TimeRemainingColumn())
        times = (TimeElapsedColumn(), *left) if console(stderr=True).width >= _WIDE else left
        super().__init__(Words(), BarColumn(24), MofNCompleteColumn(), *times, hidden=hidden)
        self.bar.get_renderables = self._renderables  # type: ignore[method-assign]
        self._population, self._generations = population, 0
        self._rows: deque[tuple[str, ...]] = deque(maxlen=_ROWS)
        self._stage, self._counting = "", True
        self._current: list[float] = []
        self._number, self._fresh, self._best = 1, 0, 0.0
        self._started = self._generation_started = time.perf_counter()
        self._fresh_before = 0

    def stage(self, name: str, total: int | None = None) -> None:
        """Restarts the bar to count measurements or evaluations; without ``total`` (finalists are measured) it stays full."""
        self._stage, self._counting = name, total is not None
        if total is None:
            # On a narrow terminal, a subnet's name would leave no room for the bar.
            fits = cell_len(name) + _BAR <= console(stderr=True).width
            self.bar.update(self.task, description=name if fits else name.partition(":")[0])
        else:
            super().stage(name, total)
            self._generations = -(-total // self._population)
            self._started = self._generation_started = time.perf_counter()

    def advance(self, count: int = 1) -> None:
        """Moves the bar on, unless finalists are measured."""
        if self._counting:
            super().advance(count)

    def event(self, event: object) -> None:
        """Shows that a subnet was evaluated or measured, or that a generation is complete."""
        if isinstance(event, Evaluated):
            self._evaluated(event)
        elif isinstance(event, Sample):
            self.bar.update(self.task, description=f"{self._stage}, last {format_ms(event.p50_ms)} (measured)")
        elif isinstance(event, GenerationResult):
            self._generation_done(event)

    def _evaluated(self, evaluated: Evaluated) -> None:
        self._fresh += not evaluated.reused
        if evaluated.evaluation.complete:  # a subnet dropped from the race has its accuracy on some images only
            self._current.append(evaluated.evaluation.accuracy)
            self._best = max(self._best, evaluated.evaluation.accuracy)
        rate = self._fresh / max(time.perf_counter() - self._started, 1e-6)
        speed = f"{rate:.1f} evaluations/s" if self._fresh else "from the journal"
        self.bar.update(self.task, description=f"generation {self._number}/{self._generations}, {speed}")

    def _generation_done(self, result: GenerationResult) -> None:
        now = time.perf_counter()
        accuracies = [score[0] for _, score in result.ranked if score[0] != DROPPED]
        self._rows.append(self._row(result.number, accuracies, result.best[1][0], now))
        self._current, self._generation_started, self._fresh_before = [], now, self._fresh
        self._number = min(result.number + 1, self._generations)

    def table(self) -> Table:
        """Returns the table of generations above the bar."""
        headings = ("generation", "subnets", "best so far", "best", "median", "evals/s")
        table = new_table(*headings, right=headings)
        for row in self._rows:
            table.add_row(*row)
        if self._current:
            table.add_row(*self._row(self._number, self._current, self._best, time.perf_counter()), style="dim")
        return table

    def _row(self, number: int, accuracies: list[float], best: float, now: float) -> tuple[str, ...]:
        fresh = self._fresh - self._fresh_before
        rate = f"{fresh / max(now - self._generation_started, 1e-6):.1f}" if fresh else "journal"
        shares = (best, max(accuracies), statistics.median(accuracies)) if accuracies else (best, None, None)
        shown = ("-" if share is None else f"{share:.2%}" for share in shares)
        return (f"{number}/{self._generations}", str(len(accuracies)), *shown, rate)

    def _renderables(self) -> Iterator[RenderableType]:
        if self._rows or self._current:
            yield self.table()
        yield self.bar.make_tasks_table(self.bar.tasks)
