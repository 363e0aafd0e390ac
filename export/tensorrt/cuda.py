"""CUDA buffers, streams, events and graphs for plan sessions, on top of torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch


class Cuda:
    """A stream of this process's current device, and what is placed and timed on it."""

    def __init__(self) -> None:
        self.name = torch.cuda.get_device_name()
        self.stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @property
    def stream_handle(self) -> int:
        """The stream, as ``execute_async_v3`` takes it: the recording one while a graph is recorded."""
        return int(torch.cuda.current_stream().cuda_stream)

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A buffer in pinned memory: only from and to such are copies asynchronous."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def device(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A buffer on the GPU."""
        return torch.zeros(shape, dtype=dtype, device="cuda")

    def event(self) -> Any:
        """A new event that takes the time."""
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def on_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Work that torch enqueues inside goes to the stream."""
        return torch.cuda.stream(self.stream)

    def synchronize(self) -> None:
        """Waits until the stream is done."""
        self.stream.synchronize()

    def record(self, launch: Callable[[], None]) -> Callable[[], None]:
        """Records what a function enqueues as a CUDA graph; the result enqueues the whole graph.

        The function must have run on this stream before: first executions allocate and load, which can't be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        # Not "global": other threads of the process (a server's) may allocate meanwhile.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            launch()
        return graph.replay
