"""The progress of `make evidence`: one line with the remaining hours."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, TextIO

from growtas.latency.at_hand import cpu_name
from tests.evidence.ledger import Line, missing
from tests.evidence.plan import Training


class Progress:
    """Shows the progress of a training and of the plan.

    The remaining hours are estimated from the finished trainings (with their measurements) on this CPU with the same number of
    threads, or without such trainings from the running one.

    Args:
        plan: the whole plan.
        lines: of the ledger.
        threads: CPU threads of a training.
        out: where the line goes; on a terminal it is written over.
    """

    def __init__(self, plan: Sequence[Training], lines: Mapping[str, Line], threads: int, out: TextIO) -> None:
        self._plan, self._out = plan, out
        self._later = missing(plan, lines)
        known = [line for line in lines.values() if line["cpu"].startswith(cpu_name()) and line["threads"] == threads]
        works = {training.key: training.work for training in plan}
        paces = [(line["seconds"] + line["measure_seconds"]) / works[line["key"]] for line in known if line["key"] in works]
        self._pace = median(paces) if paces else 0.0
        """Seconds per epoch of ``uniform``; 0 if unknown."""
        self._training: Training | None = None
        self._begun, self._first_share, self._width = 0.0, 0.0, 0

    def begin(self, training: Training) -> None:
        """Must be called when a training begins or continues."""
        self._training, self._begun, self._first_share = training, 0.0, 0.0
        self._write(f"{self._title()}: starting", whole_line=False)

    def show(self, event: str) -> None:
        """Shows a line from the training's process."""
        try:
            found: dict[str, Any] = json.loads(event)
        except json.JSONDecodeError:
            return
        if "measuring" in found:
            self._write(
                f"{self._title()}: measuring {found['measuring']}, {found['done']} of {found['of']}", found["done"] == found["of"]
            )
            return
        share = found["step"] / found["steps"]
        epoch = f", epoch {found['epoch']} done, loss {found['loss']:.3f}" if "epoch" in found else ""
        self._write(f"{self._title()}: {share:.0%}{epoch}; {self._left(share)}", "epoch" in found)

    def _title(self) -> str:
        training = self._training
        assert training is not None
        number = next((i for i, planned in enumerate(self._plan, 1) if planned.key == training.key), 0)
        return f"[{number}/{len(self._plan)}] {training.title}"

    def _left(self, share: float) -> str:
        assert self._training is not None
        if not self._begun:
            self._begun, self._first_share = time.monotonic(), share
        done = self._training.work * (share - self._first_share)
        pace = self._pace or (done and (time.monotonic() - self._begun) / done)
        if not pace:
            return "the time left is not known yet"
        own = self._training.work * (1 - share)
        others = sum(later.work for later in self._later if later.key != self._training.key)
        return f"{own * pace / 60:.0f} min left of it, {(own + others) * pace / 3600:.1f} h of the plan"

    def _write(self, text: str, whole_line: bool) -> None:
        """Rewrites one line on a terminal; in a log, writes only important texts as whole lines."""
        if self._out.isatty():
            text = text[: shutil.get_terminal_size().columns - 1]
            self._out.write(f"\r{text:<{self._width}}" + ("\n" if whole_line else ""))
            self._width = 0 if whole_line else len(text)
        elif whole_line:
            self._out.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        self._out.flush()
