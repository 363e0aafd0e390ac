"""Preparing the next items in a background thread while the current one is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_AHEAD = 3
"""Items that are ready or being prepared at most."""


def prefetched(source: Iterator[T]) -> Iterator[T]:
    """The items of ``source``, of which a thread prepares up to three ahead of time.

    The thread starts with the first item. It ends with the source, and when this iterator is closed or dropped, as it is when the
    loop over it is left by an exception. What the source raises is raised here, at its place.

    Args:
        source: must not draw from the global random generators, which the caller's thread uses too.
    """
    end = object()
    thread = ThreadPoolExecutor(1, "growtas-prefetch")
    try:
        pending = deque(thread.submit(next, source, end) for _ in range(_AHEAD))
        while (item := pending.popleft().result()) is not end:
            pending.append(thread.submit(next, source, end))
            yield item  # type: ignore[misc]
    finally:
        thread.shutdown(cancel_futures=True)
