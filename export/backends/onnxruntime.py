"""ONNX Runtime on the CPU (CUDA where its package and a GPU are at hand and asked for)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.errors import CheckpointError, DeviceError, MissingExtra
from growtas.export.backends.base import Array, RuntimeInfo, Timer, available_threads, is_installed


class OnnxRuntimeSession:
    """An ONNX file in ONNX Runtime.

    Args:
        path: the model, or its bytes.
        threads: intra-op threads; by default all that this process may use.
        device: ``cpu``, or ``cuda`` (needs onnxruntime-gpu).

    Raises:
        CheckpointError: not a model that ONNX Runtime can load.
        DeviceError: ``cuda`` without a CUDA build.
        MissingExtra: onnxruntime is not installed.
    """

    def __init__(self, path: str | Path | bytes, *, threads: int | None = None, device: str = "cpu") -> None:
        if not is_installed("onnxruntime"):
            raise MissingExtra("onnxruntime", "gpu", "running an ONNX model")
        import onnxruntime as ort

        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
        if provider not in ort.get_available_providers():
            raise DeviceError(f"this ONNX Runtime ({ort.__version__}) has no CUDA; install 'growtas[gpu]', or use the CPU")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or available_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(path if isinstance(path, bytes) else str(path), options, providers=[provider])
        except Exception as error:  # the runtime's exceptions share no base class
            what = "the model" if isinstance(path, bytes) else str(path)
            raise CheckpointError(f"{what}: ONNX Runtime can't load it ({_reason(error)})") from None
        self.output_names = tuple(output.name for output in self._session.get_outputs())
        self._input, self._output = self._session.get_inputs()[0], self.output_names[0]
        self._device = device
        # On a GPU the CPU's threads do no work worth a number.
        cpu_threads = options.intra_op_num_threads if device == "cpu" else 0
        self.info = RuntimeInfo(runtime="onnxruntime", version=ort.__version__, device=device, threads=cpu_threads)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the input."""
        channels, height, width = self._input.shape[1:]
        return int(channels), int(height), int(width)

    def run(self, images: Array) -> Array:
        """Logits of images; see :class:`growtas.export.backends.base.Session`."""
        (logits,) = self._session.run([self._output], {self._input.name: images})
        return np.asarray(logits, np.float32)

    def run_named(self, images: Array, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Several outputs of one run; see :class:`growtas.export.backends.base.NamedOutputs`."""
        return dict(zip(names, self._session.run(list(names), {self._input.name: images}), strict=True))

    def timer(self, images: Array) -> Timer:
        """A timed run on bound inputs; see :class:`growtas.export.backends.base.Session`."""
        import onnxruntime as ort

        binding: Any = self._session.io_binding()
        value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(images, np.float32), self._device, 0)
        binding.bind_ortvalue_input(self._input.name, value)
        binding.bind_output(self._output, self._device, 0)
        session = self._session

        def once() -> float:
            start = time.perf_counter_ns()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return (time.perf_counter_ns() - start) / 1e6

        return once

    def __enter__(self) -> OnnxRuntimeSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        del self._session


def _reason(error: Exception) -> str:
    """The runtime's message without its error-code preamble, on one line."""
    return " ".join(str(error).split(":")[-1].split())[:160] or type(error).__name__
