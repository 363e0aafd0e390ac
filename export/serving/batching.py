"""Dynamic batching: runs waiting requests together, up to the largest batch."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.errors import cause
from growtas.export.serving.metrics import Metrics
from growtas.export.serving.protocol import RequestRefused

Outputs = Mapping[str, NDArray[Any]]
"""Outputs by name, each ``(images, ...)``."""


@dataclass
class _Waiting:
    images: NDArray[Any]
    answer: asyncio.Future[Outputs]
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Runs the images of requests in one thread, in order of arrival, with as many requests per batch as are waiting.

    Only requests with the same image shape share a batch, and no request is split. The first request of a batch waits at most
    ``max_delay_s`` for others. While a batch runs, requests for the next one collect.

    Args:
        run: computes the outputs of at most ``max_batch`` images.
        max_batch: largest number of images in a batch.
        max_delay_s: longest time in seconds that a request waits for others.
        max_queue: number of requests that may wait; further ones are refused with status 503.
        metrics: the server's metrics.
    """

    def __init__(
        self, run: Callable[[NDArray[Any]], Outputs], *, max_batch: int, max_delay_s: float, max_queue: int, metrics: Metrics
    ) -> None:
        self._run, self._max_batch, self._max_delay, self._max_queue = run, max_batch, max_delay_s, max_queue
        self._metrics = metrics
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="growtas-infer")
        self._task: asyncio.Task[None] | None = None

    async def submit(self, images: NDArray[Any]) -> Outputs:
        """Returns the outputs of one request's images.

        Raises:
            RequestRefused: the queue is full (503), or the runtime failed (500).
        """
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())
        self.check()
        entry = _Waiting(images, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._metrics.queue.set(len(self._waiting))
        self._arrived.set()
        return await entry.answer

    def check(self) -> None:
        """Checks that the queue is not full.

        Raises:
            RequestRefused: the queue is full (503).
        """
        if len(self._waiting) >= self._max_queue:
            raise RequestRefused(f"{self._max_queue} requests are waiting already; try again later", 503, retry_after=1)

    async def close(self) -> None:
        """Stops, and cancels waiting requests."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for entry in self._waiting:
            entry.answer.cancel()
        self._waiting.clear()
        self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._gather()
            if not batch:
                continue
            start = time.perf_counter()
            try:
                images = batch[0].images if len(batch) == 1 else np.concatenate([entry.images for entry in batch])
                outputs = await loop.run_in_executor(self._thread, self._run, images)
                for name, values in outputs.items():
                    if len(values) != len(images):
                        raise RuntimeError(f"{len(values)} answers of {name} for {len(images)} images")
            # An error of the runtime concerns only these requests; the server goes on.
            except Exception as error:
                for entry in batch:
                    if not entry.answer.done():
                        entry.answer.set_exception(RequestRefused(f"the runtime failed: {cause(error)}", 500))
                continue
            self._metrics.compute.observe(time.perf_counter() - start)
            self._metrics.batches.observe(len(images))
            place = 0
            for entry in batch:
                end = place + len(entry.images)
                if not entry.answer.done():
                    entry.answer.set_result({name: values[place:end] for name, values in outputs.items()})
                place = end

    async def _gather(self) -> list[_Waiting]:
        """Collects the next batch: waits for a first request, then for more until it is full or the first waited long enough."""
        batch: list[_Waiting] = []
        rows = 0
        while True:
            while self._waiting:
                entry = self._waiting[0]
                if batch and (rows + len(entry.images) > self._max_batch or entry.images.shape[1:] != batch[0].images.shape[1:]):
                    return batch
                self._waiting.popleft()
                self._metrics.queue.set(len(self._waiting))
                if not entry.answer.done():  # done if its client has left
                    batch.append(entry)
                    rows += len(entry.images)
            left = batch[0].since + self._max_delay - time.monotonic() if batch else None
            if rows >= self._max_batch or (left is not None and left <= 0):
                return batch
            self._arrived.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                return batch
