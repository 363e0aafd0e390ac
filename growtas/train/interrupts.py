"""Stops a training between two steps, or two batches of an evaluation, on all its processes together."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence

import torch

from growtas.distributed import World
from growtas.interrupts import Interrupts
from growtas.progress import SILENT, Progress
from growtas.train.events import StopRequested


class TrainingInterrupts(Interrupts):
    """The requests to stop a training: all its processes answer a request of one, at the same place.

    The processes wait for each other in every step, so that none of them may leave alone from :meth:`join` on: they stop where all
    of them :meth:`check`, or where a step has told them that somebody asked.

    Args:
        world: the processes.
        device: of this process.
        progress: gets :class:`growtas.train.events.StopRequested`.
    """

    def __init__(self, world: World, device: torch.device, progress: Progress) -> None:
        super().__init__()
        self._world, self._device, self._progress = world, device, progress
        self._together = contextlib.ExitStack()

    def __exit__(self, *exception: object) -> None:
        self._together.close()
        super().__exit__(*exception)

    def join(self) -> None:
        """Call it where the processes begin to wait for each other: from then on a request is noted until all can answer it."""
        if self._world.size > 1:
            self._together.enter_context(self.held())

    def finish(self) -> None:
        """Call it when the training is complete: from then on a request changes nothing."""
        self._together.enter_context(self.held())
        self._progress = SILENT

    def on_request(self) -> None:
        """Says so. A signal may come in the middle of printing, which can't be entered again."""
        with contextlib.suppress(RuntimeError):
            self._progress.event(StopRequested())

    def flags(self) -> list[bool]:
        """What this process tells the others: whether Ctrl-C asked it to stop, and whether SIGTERM did."""
        return [self.requested and (self.number == signal.SIGTERM) == terminated for terminated in (False, True)]

    def check(self) -> None:
        """A place where the training can stop; all processes come by.

        Raises:
            KeyboardInterrupt: one of them was asked to.
        """
        self.answer(self._world.sum_counts([int(flag) for flag in self.flags()], self._device))

    def answer(self, flags: Sequence[float]) -> None:
        """As :meth:`check`, where all processes know the sums of their :meth:`flags`."""
        if any(flags):
            self.agree(signal.SIGINT if flags[0] else signal.SIGTERM)
            raise KeyboardInterrupt
