"""A module with the parts of TensorRT that running a plan uses, on the CPU; and torch's CUDA likewise.

The engine multiplies the sum of each image by 1, 2 and 3. Executions take five units of a clock, copies to the "device" two, copies
back three, and events read that clock.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

PLAN = b"a plan"
IMAGE = (3, 2, 2)
MAX_BATCH = 4
NUM_LOGITS = 3


class Clock:
    """What the fakes share: the time, what happened, and what is being recorded."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[str] = []
        self.recording: list[Callable[[], None]] | None = None


class Buffer(torch.Tensor):
    """A tensor whose asynchronous copies take time."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def copy_(self, source, non_blocking=False):
        self.clock.now += self.cost if non_blocking else 0
        return super().copy_(source)


class CpuCuda:
    """Stands for :class:`growtas.export.tensorrt.engine.Cuda`."""

    name = "fake GPU"

    def __init__(self, clock: Clock) -> None:
        self.clock, self.stream = clock, object()

    @property
    def stream_handle(self) -> int:
        return 7 if self.clock.recording is None else 8

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return self._buffer(shape, dtype, 3)

    def device(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return self._buffer(shape, dtype, 2)

    def _buffer(self, shape: tuple[int, ...], dtype: torch.dtype, cost: int) -> torch.Tensor:
        buffer = torch.zeros(shape, dtype=dtype).as_subclass(Buffer)
        buffer.clock, buffer.cost = self.clock, cost
        return buffer

    def event(self) -> Any:
        clock = self.clock

        class Event:
            def record(self, stream: object) -> None:
                self.time = clock.now

            def elapsed_time(self, end: Any) -> float:
                return float(end.time - self.time)

        return Event()

    @contextlib.contextmanager
    def on_stream(self) -> Iterator[None]:
        yield

    def synchronize(self) -> None:
        self.clock.calls.append("synchronize")

    def record(self, launch: Callable[[], None]) -> Callable[[], None]:
        self.clock.calls.append("record")
        self.clock.recording = recorded = []
        launch()
        self.clock.recording = None
        assert recorded, "nothing was recorded"
        return lambda: [run() for run in recorded] and None


class _Context:
    def __init__(self, clock: Clock, config: Any) -> None:
        self.clock, self.config, self.addresses, self.shape = clock, config, {}, None

    def __del__(self) -> None:
        self.clock.calls.append("context freed")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return tuple(shape[1:]) == IMAGE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], NUM_LOGITS)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, handle: int) -> bool:
        self.clock.calls.append(f"execute on {handle}")
        addresses, batch = dict(self.addresses), self.shape[0]
        # As in CUDA, a recorded graph uses the context's memory without keeping it.
        clock, alive = self.clock, weakref.ref(self)

        def run() -> None:
            assert alive() is not None, "the context of a recorded graph was freed"
            clock.now += 5
            images = _view(addresses["images"], (batch, *IMAGE))
            sums = images.reshape(batch, -1).sum(axis=1)
            _view(addresses["logits"], (batch, NUM_LOGITS))[:] = sums[:, None] * np.arange(1, NUM_LOGITS + 1)

        if self.clock.recording is not None:
            self.clock.recording.append(run)
        else:
            run()
        return True


def _view(address: int, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)


def fake_trt(clock: Clock, *, rtx: bool, validity: int = 0, version: str = "1.0") -> Any:
    """The module; ``tensorrt_rtx`` if ``rtx``, and then ``validity`` is what it says of every plan's header."""
    mode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
    strategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])

    class Cache:
        content = b""

        def deserialize(self, blob: bytes) -> bool:
            self.content = bytes(blob)
            return True

        def serialize(self) -> bytes:
            return self.content + b"+"

    class Engine:
        num_io_tensors = 2

        def __del__(self) -> None:
            clock.calls.append("engine freed")

        def get_tensor_name(self, index: int) -> str:
            return ("images", "logits")[index]

        def get_tensor_mode(self, name: str) -> Any:
            return mode.INPUT if name == "images" else mode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return SimpleNamespace(name="FLOAT")

        def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
            return [(1, *IMAGE), (1, *IMAGE), (MAX_BATCH, *IMAGE)]

        def create_execution_context(self, config: Any = None) -> _Context:
            return _Context(clock, config)

        def create_engine_inspector(self) -> Any:
            text = '{"Layers": [{"Name": "gemm", "Inputs": [{"Format/Datatype": "Half"}]}, "only a name"]}'
            return SimpleNamespace(get_engine_information=lambda format: text)

        if rtx:

            def create_runtime_config(self) -> Any:
                config = SimpleNamespace(cache=None, create_runtime_cache=Cache)
                config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
                clock.config = config
                return config

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger, self.engine_host_code_allowed = logger, False
            clock.runtime = self

        def get_engine_validity(self, data: bytes) -> tuple[Any, int]:
            return (module.EngineValidity.INVALID if validity else module.EngineValidity.VALID), validity

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            clock.calls.append("deserialise")
            if data != PLAN:
                self.logger.log(SimpleNamespace(name="ERROR"), "magic tag does not match")
                return None
            return Engine()

    class ILogger:
        pass

    module = SimpleNamespace(
        __version__=version, ILogger=ILogger, Runtime=Runtime, TensorIOMode=mode, LayerInformationFormat=SimpleNamespace(JSON=1)
    )
    if rtx:
        module.CudaGraphStrategy = strategy
        module.DynamicShapesKernelSpecializationStrategy = enum.Enum("Strategy", ["LAZY", "EAGER", "NONE"])
        module.EngineValidity = enum.Enum("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"])
        module.EngineInvalidityDiagnostics = enum.IntFlag("Diagnostics", {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2})
    return module
