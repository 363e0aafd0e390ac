"""Preparing the next items in a background thread while the current one is worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_DEPTH = 2
"""Items that wait at most."""


class _End(Generic[T]):
    """Closes the queue; ``error`` is what the source raised, if it did."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetched(source: Iterator[T]) -> Iterator[T]:
    """The items of ``source``, of which a thread prepares up to two ahead of time.

    The thread starts with the first item. It ends with the source, and when this iterator is closed or dropped, as it is when the
    loop over it is left by an exception. What the source raises is raised here, at its place.

    Args:
        source: must not draw from the global random generators, which the caller's thread uses too.
    """
    ready: queue.Queue[T | _End[T]] = queue.Queue(_DEPTH)
    stop = threading.Event()
    # A daemon, so that an iterator that is alive when the interpreter exits does not hold it up.
    thread = threading.Thread(target=_fill, args=(source, ready, stop), name="growtas-prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        # The thread may be waiting for room for one item; after that it sees that it is to stop.
        while not ready.empty():
            ready.get_nowait()
        thread.join()


def _fill(source: Iterator[T], ready: queue.Queue[T | _End[T]], stop: threading.Event) -> None:
    error: BaseException | None = None
    try:
        for item in source:
            if stop.is_set():
                return
            ready.put(item)
            if stop.is_set():
                return
    except BaseException as caught:  # handed to the thread that waits for the items
        error = caught
    if not stop.is_set():
        ready.put(_End(error))
