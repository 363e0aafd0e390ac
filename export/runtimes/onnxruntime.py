"""ONNX Runtime on the CPU, or on request with CUDA."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.errors import BuildError, CheckpointError, DeviceError, MissingExtra, cause, choices
from growtas.export.graph.foreign import check_onnx
from growtas.export.runtimes.base import Array, RuntimeInfo, Timer, is_installed
from growtas.latency import at_hand
from growtas.resources import available_threads

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(uint8)": "uint8"}


class OnnxRuntimeSession:
    """An ONNX file in ONNX Runtime.

    Args:
        path: the file, or its bytes.
        threads: intra-op threads; by default all that this process may use.
        device: ``cpu``, or ``cuda`` (which needs onnxruntime-gpu).

    Raises:
        CheckpointError: ONNX Runtime can't load the model.
        DeviceError: ``cuda`` was requested, and ONNX Runtime was built without CUDA or finds no CUDA libraries.
        MissingExtra: onnxruntime is not installed.
    """

    def __init__(self, path: str | Path | bytes, *, threads: int | None = None, device: str = "cpu") -> None:
        provider = require_provider(device)
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or available_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self._name = "the model" if isinstance(path, bytes) else str(path)
        if not isinstance(path, bytes):
            check_onnx(path)
        try:
            self._session = ort.InferenceSession(path if isinstance(path, bytes) else str(path), options, providers=[provider])
        except Exception as error:  # the runtime's exceptions share no base class
            raise CheckpointError(f"{self._name}: ONNX Runtime can't load it ({_reason(error)})") from None
        # If CUDA's libraries can't be loaded, ONNX Runtime silently uses the CPU.
        if provider not in self._session.get_providers():
            raise DeviceError(f"this ONNX Runtime ({ort.__version__}) can't load its CUDA libraries; install 'growtas[gpu]'")
        self.output_names = tuple(output.name for output in self._session.get_outputs())
        self._input, self._output = self._session.get_inputs()[0], self.output_names[0]
        # With a GPU the CPU threads do almost no work, so their number is not reported.
        cpu_threads = options.intra_op_num_threads if device == "cpu" else 0
        self._place, name = device, device if device == "cpu" else at_hand.gpu_name() or device
        self.info = RuntimeInfo(runtime="onnxruntime", version=ort.__version__, device=name, threads=cpu_threads)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the input, in its order. Free sizes are replaced by the model's image size.

        A file that growtas exported with resizing records this size in its ``preprocess``.

        Raises:
            CheckpointError: the input is not a batch of images, or their size is free and not recorded.
        """
        sizes = self._input.shape[1:]
        fixed = [isinstance(size, int) and size > 0 for size in sizes]
        image_size = 0 if all(fixed) else self._recorded_size()
        if len(sizes) != 3 or not (all(fixed) or image_size):
            raise CheckpointError(
                f"{self._name}: its input is {list(self._input.shape)}, and the size of its images is unknown; "
                "legal are (batch, channels, height, width) and (batch, height, width, channels)"
            )
        first, second, third = (int(size if is_fixed else image_size) for size, is_fixed in zip(sizes, fixed, strict=True))
        return first, second, third

    def _recorded_size(self) -> int:
        """The image size in the file's own preprocessing record; 0 without one."""
        try:
            return int(json.loads(self._session.get_modelmeta().custom_metadata_map["preprocess"])["image_size"])
        except (KeyError, TypeError, ValueError):
            return 0

    def run(self, images: Array) -> Array:
        """Returns the logits of images; see :class:`growtas.export.runtimes.base.Session`."""
        (logits,) = self._session.run([self._output], {self._input.name: images})
        return np.asarray(logits, np.float32)

    def run_named(self, images: Array, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Returns several outputs of one run; see :class:`growtas.export.runtimes.base.NamedOutputs`."""
        return dict(zip(names, self._session.run(list(names), {self._input.name: images}), strict=True))

    def timer(self, images: Array) -> Timer:
        """Returns a function that times a run on bound inputs; see :class:`growtas.export.runtimes.base.Session`.

        Raises:
            BuildError: raised by the returned function; ONNX Runtime can't run the model on these images.
            CheckpointError: the type of the model's input is not one of images.
        """
        import onnxruntime as ort

        if self._input.type not in _DTYPES:
            raise CheckpointError(f"{self._name}: its input is {self._input.type}; legal are {choices(_DTYPES.values())}")
        binding: Any = self._session.io_binding()
        placed = np.ascontiguousarray(images, _DTYPES[self._input.type])
        binding.bind_ortvalue_input(self._input.name, ort.OrtValue.ortvalue_from_numpy(placed, self._place, 0))
        binding.bind_output(self._output, self._place, 0)
        session, name = self._session, self._name

        def once() -> float:
            start = time.perf_counter_ns()
            try:
                session.run_with_iobinding(binding)
                binding.synchronize_outputs()
            except Exception as error:  # the runtime's exceptions share no base class
                raise BuildError(f"{name}: ONNX Runtime can't run it ({_reason(error)})") from None
            return (time.perf_counter_ns() - start) / 1e6

        return once

    def __enter__(self) -> OnnxRuntimeSession:
        return self

    def __exit__(self, *error: object) -> None:
        del self._session


def require_provider(device: str) -> str:
    """Returns the execution provider for ``cpu`` or ``cuda``.

    Raises:
        DeviceError: the installed ONNX Runtime doesn't have this provider.
        MissingExtra: onnxruntime is not installed.
    """
    if not is_installed("onnxruntime"):
        raise MissingExtra("onnxruntime", "gpu", "running an ONNX model")
    import onnxruntime as ort

    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    if provider not in ort.get_available_providers():
        raise DeviceError(f"this ONNX Runtime ({ort.__version__}) has no CUDA; install 'growtas[gpu]', or use the CPU")
    return provider


def _reason(error: Exception) -> str:
    """The runtime's message on one line, without the error code."""
    return cause(str(error).split(":")[-1]) or type(error).__name__
