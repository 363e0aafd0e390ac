"""Finds out whether a process that left its number somewhere is still alive, and lets a child end with its parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Returns the ``process`` entry of ``run.json`` while this process trains the run."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def process_alive(process: Mapping[str, Any], written: float | None = None) -> bool | None:
    """Returns whether a recorded process of this machine is alive; None if that can't be determined.

    The system reuses process numbers after a while, in a restarted container at once. A process that started well after its number
    was written is therefore another process.

    Args:
        process: ``pid`` and ``host``, the result of :func:`this_process`.
        written: time at which the record was written, in seconds since 1970; None if it is unknown.
    """
    pid = process["pid"]
    if process["host"] != socket.gethostname() or os.name != "posix":  # on other systems os.kill(pid, 0) is not a query
        return None
    if pid <= 0:  # os.kill() takes these for process groups
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it exists and belongs to another user
    status = _process_status(pid)
    if status is None:
        return True
    letter, began = status
    return letter not in "ZX" and (written is None or began <= written + CLOCK_SLACK_S)


def end_with_parent() -> None:
    """Lets Linux kill this process as soon as its parent ends, even if the parent is killed; elsewhere it does nothing."""
    set_death_signal = 1  # PR_SET_PDEATHSIG
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


CLOCK_SLACK_S = 60.0
"""Largest difference between the clocks of files and of processes, in seconds."""


def _process_status(pid: int) -> tuple[str, float] | None:
    """Returns a process's state letter and its start in seconds since 1970; None without Linux's /proc."""
    try:
        # The second field is the program's name in parentheses, which may itself contain spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        # The clock is used because some containers fake /proc/uptime, but not the start time in the 20th field.
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        return fields[0], boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
