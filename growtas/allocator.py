"""glibc's memory settings for large tensors.

A training step takes and gives back the same hundreds of megabytes every time. Left to itself glibc returns much of it to the
system and faults it in again, page by page.
"""

from __future__ import annotations

import ctypes
import os

# glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 1 << 30
_MMAP_BYTES = 64 << 20


def keep_memory() -> None:
    """Large tensors in huge pages, and up to 1 GiB of freed memory kept for the next step. Call it before torch is imported.

    Half a percent to two percent of a training step on a CPU. Values that the user's environment sets are left as they are; other
    systems than Linux with glibc are left alone.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "MALLOC_TRIM_THRESHOLD_" in os.environ or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no such function, or no such library
        return
    mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
