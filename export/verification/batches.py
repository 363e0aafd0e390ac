"""Runs artifacts and their references on batches of images: one batch per CPU thread, on all threads at once."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from growtas.export.runtimes.base import Array
from growtas.resources import available_threads

Logits = Callable[[Array], Array]

# The limit saves memory: each batch being computed needs its own activations.
_MOST_WORKERS = 8


def run_all(functions: Sequence[Logits], batches: Sequence[Array], *, workers: int | None = None) -> list[tuple[Array, ...]]:
    """Applies every function to every batch; returns for each batch a tuple with one result per function, in order.

    Several computations run at once, also of the same function; each should use one thread (see :func:`one_thread`). On an idle
    machine this is as fast as one batch after another on all threads. On a busy machine it does not stall, because no thread waits
    for a slower one before the end.

    Args:
        workers: number of computations that run at once; by default one per CPU thread that this process may use, at most eight.

    Raises:
        Exception: the first exception of a function; computations that have not begun are dropped.
    """
    pool = ThreadPoolExecutor(workers or min(available_threads(), _MOST_WORKERS), thread_name_prefix="growtas-run")
    try:
        running = [[pool.submit(function, batch) for function in functions] for batch in batches]
        return [tuple(future.result() for future in row) for row in running]
    finally:
        pool.shutdown(cancel_futures=True)


def cut_batches(images: Array, sizes: Iterable[int]) -> list[Array]:
    """Cuts images into consecutive batches of these sizes, starting again after the last image. Whole slices are not copied."""
    batches, start = [], 0
    for size in sizes:
        end = start + size
        batch = images[start:end] if end <= len(images) else np.take(images, range(start, end), axis=0, mode="wrap")
        batches.append(np.ascontiguousarray(batch))
        start = end
    return batches


def remembering(function: Logits) -> Logits:
    """Caches a function's results by its images, because the gates of all artifacts need the references of the same batches."""
    known: dict[bytes, Array] = {}

    def remembered(images: Array) -> Array:
        key = hashlib.blake2b(images.tobytes(), digest_size=16).digest()
        if key not in known:
            known[key] = function(images)
        return known[key]

    return remembered


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limits each torch computation to one CPU thread. OpenMP threads spin while they wait for each other, which takes minutes for
    a few images if other work uses the cores (measured on two busy cores: 55 s against 1.5 s)."""
    before = torch.get_num_threads()
    # A new thread takes the setting that the process had last.
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
