"""Handles Ctrl-C and SIGTERM: the first request stops long work at a safe point, and the second one stops it at once."""

from __future__ import annotations

import _thread
import atexit
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
"""Seconds within which two signals count as one request: `timeout` and batch systems signal a process and then its whole group,
and torchrun forwards a signal that the terminal has already sent to all processes."""
STOPPED = 128 + signal.SIGINT
"""Exit code of a stopped command; :func:`exit_code` corrects it after SIGTERM."""


class Interrupts:
    """Handles Ctrl-C and SIGTERM inside its block; a context manager.

    The first request raises KeyboardInterrupt in the main thread. Inside :meth:`held` it only sets :attr:`requested`, which the
    work checks where it can stop without losses. A second request always raises.

    Other threads receive no signals. A forked child ignores them and leaves them to its parent.

    Attributes:
        number: the signal of the newest request to this process, regardless of the instance that handled it.
        requested: whether a stop was requested.
        at_once: whether a stop was requested twice from this process.
    """

    number: ClassVar[int] = signal.SIGINT
    _heard: ClassVar[float] = -math.inf
    """Time of the newest signal."""

    def __init__(self) -> None:
        self.requested = self.at_once = self._asked = False
        self._holds, self._process = 0, os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        Interrupts.number = signal.SIGINT
        if threading.current_thread() is threading.main_thread():
            if not isinstance(getattr(signal.getsignal(signal.SIGINT), "__self__", None), Interrupts):
                Interrupts._heard = -math.inf  # a signal to earlier work of this process is not a request to this work
            self._previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
            self._hook, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._on_signal:  # a handler that was set later, such as a server's, stays
                signal.signal(number, handler)
        if self._previous:
            sys.unraisablehook = self._hook

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps a first request from interrupting the block."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def request(self, number: int = signal.SIGINT) -> None:
        """Requests a stop, as signal ``number`` does.

        Raises:
            KeyboardInterrupt: The work is not inside :meth:`held`, or this is the second request.
        """
        already_requested, self.at_once = self.requested, self._asked
        self.requested = self._asked = True
        Interrupts.number = number
        if self.at_once or not self._holds:
            raise KeyboardInterrupt
        if not already_requested:
            self.on_request()

    def agree(self, number: int) -> None:
        """Adopts another process's request. If this process gets the same signal soon after, that is not a second request."""
        Interrupts.number, Interrupts._heard = number, time.monotonic()
        if not self.requested:
            self.requested = True
            self.on_request()

    def on_request(self) -> None:
        """Called if the work continues for a while after the first request."""

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now, under_torchrun = time.monotonic(), "TORCHELASTIC_RUN_ID" in os.environ
        same = now - self._heard < (_SAME_REQUEST_UNDER_TORCHRUN_S if under_torchrun else _SAME_REQUEST_S)
        if os.getpid() == self._process and not same:
            if self._losing(frame):  # on a busy machine the repetition may come too early
                self._repeat()
                return
            Interrupts._heard = now
            self.request(number)

    def _on_unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        """Repeats a signal that was lost because it arrived inside an internal callback of Python, as there are during imports.

        Python would print a traceback there and continue.
        """
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            self._hook(lost)
            return
        self._asked, Interrupts._heard = False, -math.inf
        self._repeat()

    def _repeat(self) -> None:
        """Sends the lost signal again, a moment later. A thread of the module threading would wait here until it has begun."""

        def repeat(number: signal.Signals) -> None:
            time.sleep(0.01)
            _thread.interrupt_main(number)

        _thread.start_new_thread(repeat, (signal.Signals(self.number),))

    def _losing(self, frame: FrameType | None) -> bool:
        """Returns whether :meth:`_on_unraisable` is running, where an exception would be lost too."""
        while frame is not None and frame.f_code is not Interrupts._on_unraisable.__code__:
            frame = frame.f_back
        return frame is not None


def exit_code() -> int:
    """Returns the exit code of a stopped command: 128 plus the signal's number, so 130 after Ctrl-C and 143 after SIGTERM."""
    return 128 + Interrupts.number


def end_at_signals(code: int | None = None) -> None:
    """Lets signals end the process at once and without a traceback from now on, because its work is done.

    Args:
        code: the exit code of the process after such a signal. By default the signal itself ends the process.
    """
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL if code is None else lambda *_: os._exit(code))
        if code is not None:
            atexit.register(_ignore_signals)


def _ignore_signals() -> None:
    """Keeps a signal from replacing the exit code: while the interpreter ends, it removes handlers, but not this setting."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
