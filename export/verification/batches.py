"""Artifacts and their references run on batches of images, on all the CPU's threads at once, each batch on one."""

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

# Each batch under way holds activations of its own.
_MOST_WORKERS = 8


def run_all(functions: Sequence[Logits], batches: Sequence[Array], *, workers: int | None = None) -> list[tuple[Array, ...]]:
    """What every function makes of every batch: a tuple of one result a function for each batch, in their order.

    Several computations run at once, also of the same function; each should take one thread (see :func:`one_thread`). That is as
    fast as batches one after the other on all threads where the machine is idle, and it doesn't stall where other work takes a
    core: nothing waits for the slowest thread but at the end.

    Args:
        workers: computations that run at once; by default one for each CPU thread that this process may use, up to eight.

    Raises:
        Exception: what a function raised first; computations that have not begun are dropped.
    """
    pool = ThreadPoolExecutor(workers or min(available_threads(), _MOST_WORKERS), thread_name_prefix="growtas-run")
    try:
        running = [[pool.submit(function, batch) for function in functions] for batch in batches]
        return [tuple(future.result() for future in row) for row in running]
    finally:
        pool.shutdown(cancel_futures=True)


def cut_batches(images: Array, sizes: Iterable[int]) -> list[Array]:
    """Batches of these sizes, one after the other, beginning again after the last image; no copies where they lie in one piece."""
    batches, start = [], 0
    for size in sizes:
        end = start + size
        batch = images[start:end] if end <= len(images) else np.take(images, range(start, end), axis=0, mode="wrap")
        batches.append(np.ascontiguousarray(batch))
        start = end
    return batches


def remembering(function: Logits) -> Logits:
    """The function, computed once for the same images: every artifact's gate asks the references for the same batches."""
    known: dict[bytes, Array] = {}

    def remembered(images: Array) -> Array:
        key = hashlib.blake2b(images.tobytes(), digest_size=16).digest()
        if key not in known:
            known[key] = function(images)
        return known[key]

    return remembered


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread for each computation in torch: OpenMP's threads spin while they wait for each other, and where other work
    takes their cores a few images then take minutes (measured on two busy cores: 55 s against 1.5 s)."""
    before = torch.get_num_threads()
    # Threads that compute for the first time take over what the process was set to last.
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
