"""Runs a plan on this machine's GPU with pinned buffers, one stream and CUDA graphs, timed by CUDA events.

Every batch size has its own buffers and execution context, because a recorded graph keeps the addresses and shapes of its context.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from growtas.errors import BuildError, CheckpointError
from growtas.export.graph.exporter import OUTPUT
from growtas.export.runtimes.base import Array, PartsTimer, RuntimeInfo, Timer, TimerParts
from growtas.export.tensorrt.cache import CacheFile
from growtas.export.tensorrt.library import Module, capturing_logger, last_error

_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}
# Number of batch sizes whose buffers and contexts are kept; the least recently used one is removed.
MOST_BATCH_SIZES = 8


class Cuda:
    """CUDA buffers, events, graphs and one stream on the process's current device, on top of torch."""

    def __init__(self) -> None:
        self.name = torch.cuda.get_device_name()
        self.stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @property
    def stream_handle(self) -> int:
        """The handle for ``execute_async_v3`` of the current stream, which is the recording one while a graph is recorded."""
        return int(torch.cuda.current_stream().cuda_stream)

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Returns a buffer in pinned memory, which asynchronous copies need."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def device(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Returns a buffer on the GPU."""
        return torch.zeros(shape, dtype=dtype, device="cuda")

    def event(self) -> Any:
        """Returns a new event for timing."""
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def on_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context manager in which torch enqueues its work on the stream."""
        return torch.cuda.stream(self.stream)

    def synchronize(self) -> None:
        """Waits until the stream is done."""
        self.stream.synchronize()

    def record(self, launch: Callable[[], None]) -> Callable[[], None]:
        """Records the work that a function enqueues as a CUDA graph; returns a function that enqueues the whole graph.

        The function must have run on this stream before, because first executions allocate and load, which can't be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        # "global" would forbid allocations in other threads of the process, such as a server's.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            launch()
        return graph.replay


class PlanSession:
    """A plan that was already checked (:mod:`growtas.export.tensorrt.load`). Each batch size is launched as one CUDA graph.

    CPU code in a plan, which version-compatible plans contain, is never run.

    Args:
        trt: the module ``tensorrt`` or ``tensorrt_rtx``.
        data: the plan.
        runtime: the package's name.
        name: name of the plan in messages.
        runtime_cache: compiled kernels of TensorRT-RTX, which are read now and written at the end of the session.
        cuda: replaced in tests; by default a stream of torch's current device.

    Raises:
        CheckpointError: the runtime can't load the plan.
    """

    def __init__(
        self,
        trt: Module,
        data: bytes,
        *,
        runtime: str,
        name: str = "the plan",
        runtime_cache: CacheFile | None = None,
        cuda: Cuda | None = None,
    ) -> None:
        self._trt, self._name, self._cuda = trt, name, cuda or Cuda()
        self._logger = capturing_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        self._refuse_invalid(data)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise CheckpointError(f"{name}: {runtime} {trt.__version__} can't load the plan ({last_error(self._logger)})")
        self.info = RuntimeInfo(runtime=runtime, version=str(trt.__version__), device=self._cuda.name, threads=0)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [one for one in names if self._engine.get_tensor_mode(one) == trt.TensorIOMode.INPUT]
        if len(inputs) != 1 or len(names) < 2:
            raise CheckpointError(
                f"{name}: a plan for images has one input and at least one output, but this one has {', '.join(names)}"
            )
        self._input = inputs[0]
        self._outputs = [one for one in names if one != self._input]
        self._output = OUTPUT if OUTPUT in self._outputs else self._outputs[0]
        # TensorRT-RTX records graphs itself and can cache compiled kernels; TensorRT does neither.
        self._is_rtx = hasattr(trt, "CudaGraphStrategy")
        self._cache_file = runtime_cache
        self._runtime_config = self._configure()
        self._bindings: OrderedDict[tuple[int, ...], _Binding] = OrderedDict()
        # Each batch size has only one set of buffers and one context.
        self._one_at_a_time = threading.Lock()

    def _refuse_invalid(self, data: bytes) -> None:
        """Lets TensorRT-RTX check the plan's header before the plan is loaded."""
        if not hasattr(self._trt, "EngineValidity"):
            return
        validity, diagnostics = self._runtime.get_engine_validity(data)
        if validity == self._trt.EngineValidity.INVALID:
            flags = self._trt.EngineInvalidityDiagnostics.__members__
            reasons = [reason for reason, flag in flags.items() if int(diagnostics) & int(flag)]
            reason = ", ".join(reason.lower().replace("_", " ") for reason in reasons) or last_error(self._logger)
            raise CheckpointError(
                f"{self._name}: TensorRT-RTX {self._trt.__version__} says that the plan is not valid here ({reason})"
            )

    def _configure(self) -> Any:
        """TensorRT-RTX's runtime configuration; None for TensorRT."""
        if not self._is_rtx:
            return None
        runtime_config = self._engine.create_runtime_config()
        runtime_config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # All kernels of a shape are compiled at once. Compiled in the background, they would replace slower ones during a timing.
        runtime_config.dynamic_shapes_kernel_specialization_strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._cache = runtime_config.create_runtime_cache()
        if self._cache_file is not None and (kernels := self._cache_file.read()):
            self._cache.deserialize(kernels)
        runtime_config.set_runtime_cache(self._cache)
        return runtime_config

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the input, in its order. Dynamic sizes are those that the plan is tuned for."""
        _, first, second, third = self._engine.get_tensor_profile_shape(self._input, 0)[1]
        return int(first), int(second), int(third)

    @property
    def batches(self) -> tuple[int, int]:
        """The smallest and largest batch that the plan accepts."""
        smallest, _, largest = self._engine.get_tensor_profile_shape(self._input, 0)
        return int(smallest[0]), int(largest[0])

    def run(self, images: Array) -> Array:
        """Returns the logits of images; see :class:`growtas.export.runtimes.base.Session`."""
        with self._one_at_a_time:
            binding = self._binding(images)
            with self._cuda.on_stream():
                binding.place(images)
                binding.upload()
                binding.launch()
                binding.download()
            self._cuda.synchronize()
            return np.array(binding.host_outputs[self._output].float().numpy(), np.float32)

    def timer(self, images: Array) -> Timer:
        """Returns a function that times a run by CUDA events; see :class:`growtas.export.runtimes.base.Session`."""
        parts = self.timer_parts(images, transfers=False)
        return lambda: parts().device_ms

    def timer_parts(self, images: Array, *, transfers: bool = True) -> PartsTimer:
        """Returns a function that runs these images once and returns the time of each part.

        Args:
            images: ``(batch, channels, height, width)``.
            transfers: also copy images and logits. Otherwise the images are placed only once, now, and both transfers are 0.
        """
        binding, cuda = self._binding(images), self._cuda
        events = [cuda.event() for _ in range(4)]
        with cuda.on_stream():
            binding.place(images)
            binding.upload()
        cuda.synchronize()

        def once() -> TimerParts:
            start = time.perf_counter_ns()
            with cuda.on_stream():
                if transfers:
                    binding.place(images)
                events[0].record(cuda.stream)
                if transfers:
                    binding.upload()
                events[1].record(cuda.stream)
                binding.launch()
                events[2].record(cuda.stream)
                if transfers:
                    binding.download()
                events[3].record(cuda.stream)
            host_ms = (time.perf_counter_ns() - start) / 1e6
            cuda.synchronize()
            h2d, device, d2h = (events[i].elapsed_time(events[i + 1]) for i in range(3))
            copies = (h2d, d2h) if transfers else (0.0, 0.0)
            return TimerParts(host_ms=host_ms, h2d_ms=float(copies[0]), device_ms=float(device), d2h_ms=float(copies[1]))

        return once

    def _binding(self, images: Array) -> _Binding:
        """The buffers and context for this shape, which are made at its first use."""
        shape = tuple(images.shape)
        if shape not in self._bindings:
            smallest, largest = self.batches
            if not smallest <= shape[0] <= largest:
                raise CheckpointError(f"{self._name}: the plan takes batches from {smallest} to {largest}, not {shape[0]}")
            while len(self._bindings) >= MOST_BATCH_SIZES:
                self._bindings.popitem(last=False)
            self._bindings[shape] = self._bind(shape)
        self._bindings.move_to_end(shape)
        return self._bindings[shape]

    def _bind(self, shape: tuple[int, ...]) -> _Binding:
        engine = self._engine
        context = engine.create_execution_context(self._runtime_config) if self._is_rtx else engine.create_execution_context()
        if context is None or not context.set_input_shape(self._input, shape):
            raise CheckpointError(f"{self._name}: the plan refuses images of shape {shape} ({last_error(self._logger)})")
        shapes = {name: tuple(int(size) for size in context.get_tensor_shape(name)) for name in self._outputs}
        shapes[self._input] = shape
        dtypes = {name: _DTYPES[engine.get_tensor_dtype(name).name] for name in shapes}
        with self._cuda.on_stream():
            device = {name: self._cuda.device(size, dtypes[name]) for name, size in shapes.items()}
        host = {name: self._cuda.host(size, dtypes[name]) for name, size in shapes.items()}
        for name, tensor in device.items():
            context.set_tensor_address(name, tensor.data_ptr())

        def execute() -> None:
            if not context.execute_async_v3(self._cuda.stream_handle):
                raise BuildError(f"{self._name}: the plan's execution failed ({last_error(self._logger)})")

        # The first run allocates, loads and compiles, so it comes before recording or timing.
        with self._cuda.on_stream():
            execute()
        self._cuda.synchronize()
        launch = execute if self._is_rtx else self._cuda.record(execute)
        return _Binding(self._input, host, device, launch, context)

    def __enter__(self) -> PlanSession:
        return self

    def __exit__(self, *error: object) -> None:
        self._cuda.synchronize()
        if self._is_rtx and self._cache_file is not None and error[0] is None:
            self._cache_file.write(bytes(self._cache.serialize()))
        # Contexts must be freed before their engine, and the engine before the runtime.
        self._bindings.clear()
        if self._is_rtx:
            del self._cache
        del self._runtime_config, self._engine, self._runtime


class _Binding:
    """The buffers of one batch size, and the function ``launch`` that enqueues its execution."""

    def __init__(
        self, input_: str, host: dict[str, torch.Tensor], device: dict[str, torch.Tensor], launch: Callable[[], None], context: Any
    ) -> None:
        # A recorded graph uses the context's scratch memory but does not keep the context alive.
        self._context = context
        self._host_input, self._device_input = host.pop(input_), device.pop(input_)
        self.host_outputs, self._device_outputs, self.launch = host, device, launch

    def place(self, images: Array) -> None:
        """Copies images into pinned memory, in the plan's type."""
        self._host_input.copy_(torch.from_numpy(images))

    def upload(self) -> None:
        """Enqueues the copy to the device."""
        self._device_input.copy_(self._host_input, non_blocking=True)

    def download(self) -> None:
        """Enqueues the copies of all outputs to pinned memory."""
        for name, tensor in self.host_outputs.items():
            tensor.copy_(self._device_outputs[name], non_blocking=True)
