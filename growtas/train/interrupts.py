"""Stops a training between two steps, so that nothing is lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType

from growtas.distributed import World


class Interrupts(contextlib.ExitStack):
    """Until it is left, Ctrl-C and SIGTERM ask the training to save and stop after the running step; a second one stops at once.

    Among several processes signals keep their usual effect: torchrun decides who is stopped, and checkpoints are written by the
    clock. Outside of the main thread there are no signals to handle.

    Attributes:
        requested: whether somebody asked.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.requested = False
        if world.size == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.callback(signal.signal, number, signal.signal(number, self._ask))

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
