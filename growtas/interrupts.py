"""Answers Ctrl-C and SIGTERM: long work ends where nothing is lost, and a second request ends it at once."""

from __future__ import annotations

import _thread
import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, ClassVar, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_REQUEST_S, _SAME_REQUEST_UNDER_TORCHRUN_S = 0.3, 2.0
"""A signal that follows another one so soon is the same request: `timeout` and batch systems signal a process and then its whole
group, and torchrun passes on what the terminal has sent to everyone already."""
STOPPED = 128 + signal.SIGINT
"""Exit code of a command that was stopped; :func:`exit_code` corrects it after SIGTERM."""


class Interrupts:
    """Handles Ctrl-C and SIGTERM until it is left; a context manager.

    The first request raises KeyboardInterrupt where the main thread is. Inside :meth:`held` it is only noted: whoever holds looks
    at :attr:`requested` as soon as nothing would be lost. A second request always raises.

    Outside of the main thread there are no signals to handle. A forked child leaves them to its parent.

    Attributes:
        number: the signal of this process's newest request, whoever handled it.
        requested: whether somebody asked to stop.
        at_once: whether this process was asked twice.
    """

    number: ClassVar[int] = signal.SIGINT
    _heard: ClassVar[float] = -math.inf
    """When the newest signal came."""

    def __init__(self) -> None:
        self.requested = self.at_once = self._asked = False
        self._holds, self._process = 0, os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        Interrupts.number = signal.SIGINT
        if threading.current_thread() is threading.main_thread():
            if not isinstance(getattr(signal.getsignal(signal.SIGINT), "__self__", None), Interrupts):
                Interrupts._heard = -math.inf  # what stopped earlier work of this process is no request to this one
            self._previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
            self._hook, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._on_signal:  # else somebody else's, such as a server's, which is to stay
                signal.signal(number, handler)
        if self._previous:
            sys.unraisablehook = self._hook

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """What runs inside is not interrupted by a first request."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def request(self, number: int = signal.SIGINT) -> None:
        """Ask to stop, as signal ``number`` does.

        Raises:
            KeyboardInterrupt: nobody holds, or it is the second time.
        """
        said, self.at_once = self.requested, self._asked
        self.requested = self._asked = True
        Interrupts.number = number
        if self.at_once or not self._holds:
            raise KeyboardInterrupt
        if not said:
            self.on_request()

    def agree(self, number: int) -> None:
        """Take over a request that another process got; that this one gets it too, a moment later, is no second request."""
        Interrupts.number, Interrupts._heard = number, time.monotonic()
        if not self.requested:
            self.requested = True
            self.on_request()

    def on_request(self) -> None:
        """Called when the work goes on for a moment after the first request."""

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now, under_torchrun = time.monotonic(), "TORCHELASTIC_RUN_ID" in os.environ
        same = now - self._heard < (_SAME_REQUEST_UNDER_TORCHRUN_S if under_torchrun else _SAME_REQUEST_S)
        if os.getpid() == self._process and not same:
            Interrupts._heard = now
            self.request(number)

    def _on_unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        """Sends a signal again that was lost, because it came inside a callback of Python's own, as there are during imports.

        Python would print a traceback there, and go on as if nothing had been pressed.
        """
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            self._hook(lost)
            return
        self._asked, Interrupts._heard = False, -math.inf
        threading.Timer(0.01, _thread.interrupt_main, (self.number,)).start()


def exit_code() -> int:
    """The exit code of a command that was stopped: 128 and the signal's number, so 130 after Ctrl-C and 143 after SIGTERM."""
    return 128 + Interrupts.number


def end_at_signals() -> None:
    """From now on a signal ends the process as it is, without a traceback: its work is over."""
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
