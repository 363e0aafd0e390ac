"""Stops all processes of a training at the same place: between two steps, or between two batches of an evaluation."""

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
    """Requests to stop a training. If one process gets a request, all of them stop at the same place.

    The processes wait for each other in every step, so after :meth:`join` no process may stop alone. They stop where all of them
    call :meth:`check`, or after a step in which the processes exchanged the request.

    Args:
        world: the processes of the training.
        device: the device of this process.
        progress: receives :class:`growtas.train.events.StopRequested`.
    """

    def __init__(self, world: World, device: torch.device, progress: Progress) -> None:
        super().__init__()
        self._world, self._device, self._progress = world, device, progress
        self._together = contextlib.ExitStack()

    def __exit__(self, *exception: object) -> None:
        self._together.close()
        super().__exit__(*exception)

    def join(self) -> None:
        """Marks the place from which the processes wait for each other. Later requests are held until all processes can stop."""
        if self._world.size > 1:
            self._together.enter_context(self.held())

    def finish(self) -> None:
        """Marks the training as complete. Later requests have no effect."""
        self._together.enter_context(self.held())
        self._progress = SILENT

    def on_request(self) -> None:
        """Reports the request. The signal may arrive during a print call, and printing again then raises a RuntimeError."""
        with contextlib.suppress(RuntimeError):
            self._progress.event(StopRequested())

    def flags(self) -> list[bool]:
        """Returns whether Ctrl-C asked this process to stop, and whether SIGTERM did. The processes exchange these flags."""
        return [self.requested and (self.number == signal.SIGTERM) == terminated for terminated in (False, True)]

    def check(self) -> None:
        """Stops all processes if one of them has a request. All processes must call this at the same place.

        Raises:
            KeyboardInterrupt: one of them was asked to stop.
        """
        self.answer(self._world.sum_numbers([int(flag) for flag in self.flags()], self._device))

    def answer(self, flags: Sequence[float]) -> None:
        """Does the same as :meth:`check`, given the sums of all processes' :meth:`flags`."""
        if any(flags):
            self.agree(signal.SIGINT if flags[0] else signal.SIGTERM)
            raise KeyboardInterrupt
