"""Runs the cases of a step. An exception of a case affects only its own row."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.gpu.report import FAILED, MEASURED, RUNNING, SKIPPED, Row, append_row


@dataclass(frozen=True)
class Outcome:
    """The result of a case: a sentence, its numbers, and whether it passed."""

    result: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    passed: bool = True


class Skipped(Exception):
    """A case can't run here; the message says why."""


Cases = Iterator[tuple[str, Callable[[], Outcome]]]


def run_cases(step: str, make: Callable[[], Cases], rows: Path) -> None:
    """Runs the cases one after another. Each case writes a row when it begins, and another one when it is done."""
    cases = None
    while True:
        case = f"preparing {step}"
        start = time.perf_counter()
        try:
            cases = cases or make()
            title, function = next(cases)
            case = title
            sys.stdout.write(f"{case} ...\n")
            sys.stdout.flush()
            append_row(rows, Row(step=step, case=case, outcome=RUNNING))
            start = time.perf_counter()
            outcome = function()
            word, result, numbers = MEASURED if outcome.passed else FAILED, outcome.result, dict(outcome.numbers)
        except StopIteration:
            return
        except Skipped as reason:
            word, result, numbers = SKIPPED, str(reason), {}
        except ModuleNotFoundError as error:
            traceback.print_exc()
            ours = str(error.name).partition(".")[0] in ("growtas", "tests")
            word, result, numbers = FAILED if ours else SKIPPED, f"{error.name} is not installed", {}
        except Exception as error:
            traceback.print_exc()
            word, result, numbers = FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", {}
        seconds = round(time.perf_counter() - start, 2)
        append_row(rows, Row(step=step, case=case, outcome=word, result=result, numbers={**numbers, "seconds": seconds}))
        if case == f"preparing {step}":
            return
