"""PyTorch: a module from images to logits, eager, compiled by ``torch.compile``, or captured as a CUDA graph."""

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
    """A PyTorch module from images to logits, eager, or compiled or captured for each batch size that is run.

    Every run takes as many CPU threads as ``info`` says, and leaves torch's own number, which the whole process shares, as it was.

    Args:
        module: in eval mode.
        image_shape: channels, height and width of its input.
        threads: CPU threads; by default all that this process may use.
        device: ``cpu`` or ``cuda``.
        compiled: compile it by ``torch.compile``, without graph breaks.
        captured: record its kernels once as a CUDA graph, and launch them together; on a GPU only.
        dtype: of weights and activations.
        max_batch: the largest batch that it takes; None for any.
        runtime: the name in ``info``; ``torch``, ``torch.compile`` or ``torch.cudagraphs`` by default.

    Raises:
        DeviceError: ``compiled``, and no C++ compiler works here.
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
            # Compiling looks for CUDA's compiler, and tells of it where there is none, whatever the model is compiled for.
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
            # Once a shape: what was compiled for many shapes at once is slower, and is not what one would serve.
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
        """Logits of images; see :class:`growtas.export.runtimes.base.Session`.

        Raises:
            DeviceError: ``torch.compile`` failed.
            UsageError: more images than ``max_batch``.
        """
        return np.asarray(self._forward(self._place(images)).float().cpu().numpy(), np.float32)

    def timer(self, images: Array) -> Timer:
        """A timed run on placed inputs, compiled or captured before; see :class:`growtas.export.runtimes.base.Session`.

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
            # More batch sizes than dynamo's default limit are fine: each is asked for.
            with torch._dynamo.config.patch(recompile_limit=1024):
                try:
                    return self._call(placed)
                except Exception as error:  # the compiler's stages each have their own exceptions
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    raise DeviceError(f"torch.compile failed ({' '.join(reason.split())[:160]})") from error

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(self, *error: object) -> None:
        del self._call, self.module


class _CudaGraphs:
    """A module's kernels as CUDA graphs, one for each shape of images: launched together, they don't wait for the CPU.

    A graph reads and writes fixed memory: the next call with the same shape overwrites the logits.
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
        # The first runs choose kernels and allocate, which can't be captured; torch asks for another stream than the default one.
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
    """Computes on ``count`` CPU threads inside, and puts torch's number back afterwards. 0 leaves it as it is.

    Torch keeps the number for the whole process. Computations that need another one than is set therefore run one at a time; those
    that find theirs run at once.
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
