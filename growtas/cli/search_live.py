"""What ``growtas search`` shows while it runs, on stderr: notes, the generations as a table, and a progress bar."""

from __future__ import annotations

import statistics
import time
from collections import deque
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from growtas.cli.output import note, progress_console
from growtas.latency.measured.campaign import Sample
from growtas.progress import Progress
from growtas.search.evolution import GenerationResult
from growtas.search.scoring import DROPPED, Evaluated
from growtas.units import format_ms

_ROWS = 8


class SearchDisplay(Progress):
    """The last generations with their best and median accuracy, evaluations a second and the time that is left; a context manager.

    Args:
        generations: how many to expect.
        hidden: show only notes, as where stderr is no terminal.
    """

    def __init__(self, generations: int, *, hidden: bool) -> None:
        self._generations = generations
        screen = progress_console()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=screen,
        )
        self._task = self._bar.add_task("", rate="")
        self._live = None if hidden or not screen.is_terminal else Live(console=screen, transient=True, refresh_per_second=4)
        self._rows: deque[tuple[str, ...]] = deque(maxlen=_ROWS)
        self._stage = ""
        self._current: list[float] = []
        self._number, self._fresh, self._best = 1, 0, 0.0
        self._started = self._generation_started = time.perf_counter()
        self._fresh_before = 0

    def __enter__(self) -> SearchDisplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """A line on stderr."""
        note(text)

    def stage(self, name: str, total: int | None = None) -> None:
        """The bar counts what is measured, then what is evaluated; while finalists are measured it stays full."""
        self._stage = name
        if total is None:
            self._bar.update(self._task, description=name)
        else:
            self._bar.reset(self._task, total=total, description=name)
            self._started = self._generation_started = time.perf_counter()
        if self._live is not None:
            self._live.start()
        self._show()

    def advance(self, count: int = 1) -> None:
        """More subnets are measured or evaluated."""
        self._bar.advance(self._task, count)
        self._show()

    def event(self, event: object) -> None:
        """One more subnet is evaluated or measured, or a generation is complete."""
        if isinstance(event, Evaluated):
            self._evaluated(event)
        elif isinstance(event, Sample):
            self._bar.update(self._task, description=f"{self._stage}, last {format_ms(event.p50_ms)} (measured)")
        elif isinstance(event, GenerationResult):
            self._generation_done(event)

    def _evaluated(self, evaluated: Evaluated) -> None:
        self._fresh += not evaluated.reused
        if evaluated.evaluation.complete:  # else it was dropped from a race, and its accuracy is of some images only
            self._current.append(evaluated.evaluation.accuracy)
            self._best = max(self._best, evaluated.evaluation.accuracy)
        rate = self._fresh / max(time.perf_counter() - self._started, 1e-6)
        description = f"generation {self._number}/{self._generations}"
        self._bar.update(
            self._task, description=description, rate=f"{rate:.1f} evaluations/s" if self._fresh else "from the journal"
        )

    def _generation_done(self, result: GenerationResult) -> None:
        now = time.perf_counter()
        accuracies = [score[0] for _, score in result.ranked if score[0] != DROPPED]
        self._rows.append(self._row(result.number, accuracies, result.best[1][0], now))
        self._current, self._generation_started, self._fresh_before = [], now, self._fresh
        self._number = min(result.number + 1, self._generations)
        self._show()

    def table(self) -> Table:
        """What is shown above the bar."""
        table = Table(box=None, pad_edge=False)
        for heading in ("generation", "subnets", "best so far", "best", "median", "evaluations/s"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self._rows:
            table.add_row(*row)
        if self._current:
            table.add_row(*self._row(self._number, self._current, self._best, time.perf_counter()), style="dim")
        return table

    def _row(self, number: int, accuracies: list[float], best: float, now: float) -> tuple[str, ...]:
        fresh = self._fresh - self._fresh_before
        rate = f"{fresh / max(now - self._generation_started, 1e-6):.1f}" if fresh else "journal"
        shares = (best, max(accuracies, default=0.0), statistics.median(accuracies or [0.0]))
        return (f"{number}/{self._generations}", str(len(accuracies)), *(f"{share:.2%}" for share in shares), rate)

    def _show(self) -> None:
        if self._live is not None:
            started = self._rows or self._current
            self._live.update(Group(self.table(), self._bar) if started else self._bar)
