"""Runs a PyTorch module: eager, compiled by ``torch.compile``, or captured as a CUDA graph."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from growtas.errors import DeviceError, UsageError
from growtas.export.runtimes.base import Array, RuntimeInfo, Timer, require_compiler
from growtas.resources import available_threads

_CHANGING_THREADS = threading.Lock()


class TorchSession:
    """A PyTorch module from images to logits: eager, or compiled or captured for each batch size.

    Every run uses the CPU threads of ``info``, and then restores torch's number of threads, which the whole process shares.

    Args:
        module: the module, in eval mode.
        image_shape: channels, height and width of its input.
        threads: CPU threads; by default all that this process may use.
        device: ``cpu`` or ``cuda``.
        compiled: compile the module by ``torch.compile``, without graph breaks.
        captured: record the module's kernels as a CUDA graph, and launch them together; only on a GPU.
        dtype: type of weights and activations.
        max_batch: largest batch that the module accepts; None for any batch.
        runtime: the name in ``info``; by default ``torch``, ``torch.compile`` or ``torch.cudagraphs``.

    Raises:
        DeviceError: ``compiled`` was requested, and no C++ compiler works here.
    """

    def __init__(
        self,
        module: nn.Module,
        image_shape: tuple[int, int, int],
        *,
        threads: int | None = None,
        device: str = "cpu",
        compiled: bool = False,
        captured: bool = False,
        dtype: torch.dtype = torch.float32,
        max_batch: int | None = None,
        runtime: str | None = None,
    ) -> None:
        self.image_shape, self.max_batch = image_shape, max_batch
        self.module = module.to(device, dtype)
        self._device, self._compiled, self._dtype = device, compiled, dtype
        self._call: Callable[..., Tensor] = module
        default = "torch"
        if compiled:
            require_compiler(device)
            # Compiling always looks for CUDA's compiler, and warns if there is none, also for the CPU.
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
            # Compiled once per shape: code for many shapes at once is slower, and nobody would serve it.
            default, self._call = "torch.compile", torch.compile(module, fullgraph=True, dynamic=False)
        elif captured:
            default, self._call = "torch.cudagraphs", _CudaGraphs(module)
        self.info = RuntimeInfo(
            runtime=runtime or default,
            version=torch.__version__,
            device=torch.cuda.get_device_name() if device == "cuda" else device,
            threads=0 if device == "cuda" else threads or available_threads(),
        )

    def run(self, images: Array) -> Array:
        """Returns the logits of images; see :class:`growtas.export.runtimes.base.Session`.

        Raises:
            DeviceError: ``torch.compile`` failed.
            UsageError: there are more images than ``max_batch``.
        """
        return np.asarray(self._forward(self._place(images)).float().cpu().numpy(), np.float32)

    def timer(self, images: Array) -> Timer:
        """Returns a function that times a run on placed inputs; see :class:`growtas.export.runtimes.base.Session`.

        Raises:
            DeviceError, UsageError: as for :meth:`run`.
        """
        placed, call, threads = self._place(images), self._call, self.info.threads
        if call is not self.module:
            self._forward(placed)

        def on_cpu() -> float:
            with cpu_threads(threads), torch.inference_mode():
                start = time.perf_counter_ns()
                call(placed)
                return (time.perf_counter_ns() - start) / 1e6

        if self._device == "cpu":
            return on_cpu
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

        def on_gpu() -> float:
            start.record()
            with torch.inference_mode():
                call(placed)
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end))

        return on_gpu

    def _place(self, images: Array) -> Tensor:
        if self.max_batch is not None and len(images) > self.max_batch:
            raise UsageError(f"the program takes batches of 1 to {self.max_batch}, not {len(images)}; export it with --max-batch")
        return torch.from_numpy(images).to(self._device, self._dtype)

    def _forward(self, placed: Tensor) -> Tensor:
        with cpu_threads(self.info.threads), torch.inference_mode():
            if not self._compiled:
                return self._call(placed)
            # Every batch size is compiled on request, so dynamo's default limit is too low.
            with torch._dynamo.config.patch(recompile_limit=1024):
                try:
                    try:
                        return self._call(placed)
                    except Exception as error:
                        if "ImportError" not in str(error):
                            raise
                        # A killed compiler leaves an incomplete library in torch's cache, which torch would try again forever.
                        torch._dynamo.reset()
                        with torch._inductor.utils.fresh_cache():
                            return self._call(placed)
                except Exception as error:  # the exceptions of the compiler's stages share no base class
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    raise DeviceError(f"torch.compile failed ({' '.join(reason.split())[:160]})") from error

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(self, *error: object) -> None:
        del self._call, self.module


class _CudaGraphs:
    """A module's kernels as CUDA graphs, one per shape of images. Kernels that are launched together don't wait for the CPU.

    A graph reads and writes fixed memory, so the next call with the same shape overwrites the logits.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        if images.shape not in self._graphs:
            self._graphs[images.shape] = self._capture(images)
        graph, placed, logits = self._graphs[images.shape]
        if images is not placed:
            placed.copy_(images)
        graph.replay()
        return logits

    def _capture(self, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        # The first runs choose kernels and allocate memory, which can't be captured. torch does not capture the default stream.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._module(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._module(images)
        return graph, images, logits


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Sets torch's number of CPU threads to ``count`` and restores it at the end. 0 changes nothing.

    The whole process shares this number. Computations that must change it therefore run one at a time; the others run at once.
    """
    before = torch.get_num_threads()
    if count in (0, before):
        yield
        return
    with _CHANGING_THREADS:
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)
