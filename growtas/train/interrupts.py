"""Stops a training between two steps, so that nothing is lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from growtas.distributed import World


class Interrupts:
    """While it is entered, Ctrl-C and SIGTERM ask the training to save and stop after the running step; a second one stops at once.

    Among several processes signals keep their usual effect: torchrun decides who is stopped, and checkpoints are written by the
    clock. Outside of the main thread there are no signals to handle.

    Attributes:
        requested: whether somebody asked.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, world: World) -> None:
        self.requested = False
        self._handles = world.size == 1 and threading.current_thread() is threading.main_thread()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if self._handles:
            self._before = {number: signal.signal(number, self._ask) for number in self._SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
