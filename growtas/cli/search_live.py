"""What ``growtas search`` shows while it runs: the generations as a table, and how far it is; on stderr."""

from __future__ import annotations

import statistics
import time
from collections import deque
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from growtas.cli.output import progress_console
from growtas.search.evolution import GenerationResult
from growtas.search.journal import Evaluation
from growtas.search.scoring import DROPPED, Score
from growtas.subnet import Subnet

_ROWS = 8


class EvolutionTable:
    """The last generations with their best and median accuracy, evaluations a second and the time that is left; a context manager.

    Args:
        generations, population: how many evaluations to expect.
        hidden: show nothing; nor is anything shown where stderr is no terminal.
    """

    def __init__(self, generations: int, population: int, *, hidden: bool) -> None:
        self._generations, self._population = generations, population
        screen = progress_console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=screen,
        )
        self._task = self._progress.add_task("first generation", total=generations * population, rate="")
        self._live = None if hidden or not screen.is_terminal else Live(console=screen, transient=True, refresh_per_second=4)
        self._rows: deque[tuple[str, ...]] = deque(maxlen=_ROWS)
        self._current: list[float] = []
        self._number, self._fresh, self._best = 1, 0, 0.0
        self._started = self._begun = time.perf_counter()
        self._fresh_before = 0

    def __enter__(self) -> EvolutionTable:
        self._started = self._begun = time.perf_counter()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def evaluated(self, subnet: Subnet, evaluation: Evaluation, reused: bool) -> None:
        """One more subnet."""
        self._fresh += not reused
        if evaluation.complete:  # else it was dropped from a race, and its accuracy is of some images only
            self._current.append(evaluation.accuracy)
            self._best = max(self._best, evaluation.accuracy)
        rate = self._fresh / max(time.perf_counter() - self._started, 1e-6)
        said = f"generation {self._number}/{self._generations}"
        self._progress.update(
            self._task, advance=1, description=said, rate=f"{rate:.1f} evaluations/s" if self._fresh else "from the journal"
        )
        self._show()

    def generation(self, result: GenerationResult[Score]) -> None:
        """A generation is complete."""
        now = time.perf_counter()
        self._rows.append(
            self._row(result.number, [score[0] for _, score in result.ranked if score[0] != DROPPED], result.best[1][0], now)
        )
        self._current, self._begun, self._fresh_before = [], now, self._fresh
        self._number = min(result.number + 1, self._generations)
        self._show()

    def finalist(self, subnet: Subnet) -> None:
        """A finalist is about to be measured."""
        self._progress.update(self._task, description=f"measuring a finalist: {subnet}")
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
        rate = f"{fresh / max(now - self._begun, 1e-6):.1f}" if fresh else "journal"
        shares = (best, max(accuracies, default=0.0), statistics.median(accuracies or [0.0]))
        return (f"{number}/{self._generations}", str(len(accuracies)), *(f"{share:.2%}" for share in shares), rate)

    def _show(self) -> None:
        if self._live is not None:
            self._live.update(Group(self.table(), self._progress))
