"""Timing in turns: on a shared machine only pairs taken close together can be compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One line of the table: a ratio that must not exceed its bar."""

    name: str
    ratio: float
    bar: float
    detail: str = ""

    @property
    def holds(self) -> bool:
        return self.ratio <= self.bar

    def to_dict(self) -> dict[str, object]:
        return {"name": self.name, "ratio": round(self.ratio, 4), "bar": self.bar, "holds": self.holds, "detail": self.detail}


Programs = dict[str, Callable[[], object]]


def in_turns(programs: Programs, *, rounds: int, repeats: int = 1, warmup: int = 1) -> dict[str, list[float]]:
    """Milliseconds of each program: the median of ``repeats`` calls in each of ``rounds`` rounds over all programs."""
    for program in programs.values():
        for _ in range(warmup):
            program()
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            calls = []
            for _ in range(repeats):
                start = time.perf_counter()
                program()
                calls.append((time.perf_counter() - start) * 1e3)
            times[name].append(statistics.median(calls))
    return times


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    """Median over the rounds of the time of ``one`` over that of ``other`` in the same round."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def medians(times: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {statistics.median(values):.3g} ms" for name, values in times.items())
