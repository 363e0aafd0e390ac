"""Lets one process at a time work in a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, SoftFileLock, Timeout

from growtas.errors import OutputError, UsageError

LOCK = ".lock"
"""Usual name of a lock's file."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of file systems that can't lock files, such as NFS 3 without its lock service."""


@contextlib.contextmanager
def exclusive(folder: Path, work: str, name: str = LOCK) -> Iterator[None]:
    """Holds the lock of a folder. The system releases it when the process ends, in whatever way, and regardless of any clock.

    The lock holds for all machines if the file system shares locks, as NFS 4 does. On a file system without locks, a marker file
    with the machine and process takes its place. growtas removes the marker of a dead process of its own machine.

    Args:
        folder: an existing folder.
        work: what this process does there, for the error message of the next one, such as ``training this run``.
        name: name of the lock's file.

    Raises:
        UsageError: Another process holds the lock; the message names it.
        OutputError: The lock's file can't be written.
    """
    path = folder / name
    try:
        if path.is_symlink() or (path.exists() and not stat.S_ISREG(path.stat().st_mode)):
            raise OutputError(f"{path}: the lock can't be written (it is not a regular file); remove it")
        lock = _acquired(path)
    except Timeout as refused:
        raise UsageError(
            f"{folder}: {_in_words(lock_owner(Path(refused.lock_file)))} {work}; wait for it, or stop it first"
        ) from None
    except OSError as error:
        raise OutputError(f"{path}: the lock can't be written ({error.strerror or error})") from None
    try:
        yield
    finally:
        # It is removed while it is held: a process that has opened it sees that it is gone, and tries again.
        path.unlink(missing_ok=True)
        lock.release()


def _acquired(path: Path) -> FileLock | SoftFileLock:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # filelock's warning that it uses a marker file
        lock: FileLock | SoftFileLock = FileLock(path, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            path.unlink(missing_ok=True)
            lock = SoftFileLock(path.with_name(f"{path.name}-marker"), thread_local=False)
            lock.acquire(blocking=False)
    if isinstance(lock, FileLock):
        # The same lines as in a marker. A full disk may have no room for them; the lock holds nevertheless.
        with contextlib.suppress(OSError):
            path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", encoding="utf-8")
    return lock


def lock_owner(path: Path) -> dict[str, Any] | None:
    """Returns the ``pid`` and ``host`` that a lock's file names; None if it names none.

    The process may have been killed since: then nobody holds the lock.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            pid, host = file.read(1000).splitlines()[:2]
        return {"pid": int(pid), "host": host}
    except (OSError, ValueError):
        return None


def _in_words(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "another process is"
    where = "" if owner["host"] == socket.gethostname() else f" on {owner['host']}"
    return f"process {owner['pid']}{where} is"
