"""What ``growtas search`` shows: live progress on stderr, and the subnet that was found."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from growtas.cli.output import console, print_table, progress
from growtas.latency.estimate import Latency
from growtas.search.evolution import GenerationResult
from growtas.search.journal import Evaluation
from growtas.search.limits import Limits
from growtas.search.search import Found, Score
from growtas.subnet import Subnet
from growtas.units import format_count, format_ms


class EvolutionBar:
    """Generation, best and median accuracy, evaluations a second and the time that is left; a context manager.

    Args:
        generations, population: how many evaluations to expect.
        hidden: show nothing.
    """

    def __init__(self, generations: int, population: int, *, hidden: bool) -> None:
        self._generations, self._population = generations, population
        self._progress = progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            hidden=hidden,
        )
        self._task = self._progress.add_task(self._said(0, None), total=generations * population, rate="")
        self._accuracies: list[float] = []
        self._number, self._fresh = 1, 0
        self._started = time.perf_counter()

    def __enter__(self) -> EvolutionBar:
        self._progress.start()
        self._started = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def _said(self, number: int, best: float | None, median: float | None = None) -> str:
        said = f"generation {number}/{self._generations}" if number else "first generation"
        if best is not None:
            said += f"  best {best:.2%}"
        return said if median is None else f"{said}  median {median:.2%}"

    def evaluated(self, subnet: Subnet, evaluation: Evaluation, reused: bool) -> None:
        """One more subnet."""
        self._fresh += not reused
        self._accuracies.append(evaluation.accuracy)
        rate = self._fresh / max(time.perf_counter() - self._started, 1e-6)
        recent = self._accuracies[-self._population :]
        description = self._said(self._number, max(self._accuracies), statistics.median(recent))
        self._progress.update(
            self._task, advance=1, description=description, rate=f"{rate:.1f} evaluations/s" if self._fresh else ""
        )

    def generation(self, result: GenerationResult[Score]) -> None:
        """A generation is complete."""
        self._number = min(result.number + 1, self._generations)

    def finalist(self, subnet: Subnet) -> None:
        """A finalist is about to be measured."""
        self._progress.update(self._task, description=f"measuring a finalist: {subnet}")


@contextmanager
def measuring_bar(count: int, *, hidden: bool) -> Iterator[Callable[[Subnet, float], None]]:
    """Progress of the first measurements; yields what to call after each of them."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    with progress(*columns, hidden=hidden) as bar:
        task = bar.add_task("measuring subnets on this machine", total=count)

        def step(subnet: Subnet, ms: float) -> None:
            bar.update(task, advance=1, description=f"measuring subnets on this machine, last {format_ms(ms)}")

        yield step


def latency_note(latency: Latency | None, limit_ms: float | None) -> str | None:
    """What kind of number a latency is, in words; None without one."""
    if latency is None:
        return None
    if latency.kind == "measured":
        return f"measured on this machine ({latency.conditions})"
    spread = latency.relative_uncertainty or 0.0
    text = f"modelled from the datasheet, not measured; uncertainty +-{spread:.0%} ({latency.conditions})"
    highest = latency.ms * (1 + spread)
    if limit_ms is None:
        return text
    if highest > limit_ms:
        return f"{text}; at the upper end, {format_ms(highest)}, it misses the limit"
    return f"{text}; it meets the limit even at the upper end, {format_ms(highest)}"


def show_found(found: Found, limits: Limits, report: dict[str, Any]) -> None:
    """The subnet with its costs beside the limits, and how it was found; on stdout."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "subnet found", "limit"):
        table.add_column(heading, overflow="fold")
    table.add_row("subnet", str(found.subnet), "")
    table.add_row("params", format_count(found.costs.params), _at_most(limits.max_params, format_count))
    table.add_row("MACs", format_count(found.costs.macs), _at_most(limits.max_macs, format_count))
    table.add_row("accuracy", f"{found.evaluation.accuracy:.2%} ({report['images']['count']} search images)", "")
    if found.latency is not None:
        label = f"latency, {found.latency.kind}"
        table.add_row(label, f"{found.latency}, {found.latency.conditions}", _at_most(limits.max_latency_ms, format_ms))
    print_table(table)
    if report["latency_note"] is not None:
        console().print(f"latency: {report['latency_note']}", soft_wrap=True)
    misses = len(report["measured_finalists"]) - 1
    if misses > 0 and limits.max_latency_ms is not None:
        console().print(f"{misses} better subnets were measured and miss the limit", soft_wrap=True)
    reused = f", {report['reused']} more taken from the journal" if report["reused"] else ""
    console().print(f"{report['evaluated']} subnets evaluated in {report['seconds']:.1f} s{reused}", soft_wrap=True)
    console().print(f"written to {report['files']['subnet']}", soft_wrap=True)


def _at_most(limit: float | None, form: Callable[[float], str]) -> str:
    return "" if limit is None else f"at most {form(limit)}"
