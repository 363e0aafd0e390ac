"""Prepares the next items in a background thread while the caller works on the current one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_AHEAD = 3
"""Largest number of items that are ready or being prepared."""


def prefetched(source: Iterator[T]) -> Iterator[T]:
    """Yields the items of ``source``; a thread prepares up to three items in advance.

    The thread starts with the first item. It ends with the source, or when this iterator is closed or deleted, as happens when an
    exception leaves the loop over it. An exception of the source is raised here, at the same item.

    Args:
        source: the items. It must not use the global random generators, because the caller's thread uses them.
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
