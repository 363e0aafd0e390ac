"""Runs models in OpenVINO on the CPU, in fp32, and writes ONNX files as OpenVINO's IR (an .xml with a .bin beside it)."""

from __future__ import annotations

import errno
import functools
import io
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.errors import BuildError, CheckpointError, MissingExtra, OutputError, UsageError
from growtas.export.graph.foreign import check_onnx, read_ir
from growtas.export.runtimes.base import Array, RuntimeInfo, Timer, is_installed
from growtas.files import ensure_writable, staged
from growtas.resources import available_threads

_TELEMETRY = "openvino_telemetry"
_LITTLE_SPACE = 100_000
"""Free bytes of a disk that is so full that a failed writing is explained by it."""


def _module(purpose: str) -> Any:
    """Imports the package without its telemetry.

    With the package openvino_telemetry, which pip installs too, importing openvino sends a message to its maker and leaves a folder
    in the user's home. While that package is hidden, openvino uses a replacement that does nothing.
    """
    if not is_installed("openvino"):
        raise MissingExtra("openvino", "openvino", purpose)
    if "openvino" not in sys.modules:
        hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == _TELEMETRY}
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            del sys.modules[_TELEMETRY]
            sys.modules.update(hidden)
    import openvino

    return openvino


_CORE_LOCK = threading.Lock()


@functools.cache
def _core() -> Any:
    """The only Core of the process, which is never freed. Callers must hold the lock.

    On CPUs with large registers OpenVINO's CPU plugin replaces the loading thread's signal stack, and restores the old one when the
    Core is freed. If two Cores are freed in the order of their creation, the second one restores a freed stack. The next signal
    (Ctrl-C, or the end of a child process) then kills the process.
    """
    import openvino

    return openvino.Core()


class OpenVINOSession:
    """An ONNX file or an IR in OpenVINO, on the CPU.

    Everything is computed in fp32, in one stream tuned for latency. (By default OpenVINO uses bf16 on CPUs that have it.)

    Args:
        path: an ``.onnx`` file, an ``.xml`` file with its ``.bin`` beside it, or the bytes of an ONNX model.
        threads: CPU threads; by default all that this process may use.

    Raises:
        CheckpointError: OpenVINO can't load the model, or its input and output are not images and logits.
        MissingExtra: openvino is not installed.
    """

    def __init__(self, path: str | Path | bytes, *, threads: int | None = None) -> None:
        ov = _module("running a model in OpenVINO")
        model, what = _read(ov, path)
        shape = model.input(0).get_partial_shape()
        self.image_shape = (shape[1].get_length(), shape[2].get_length(), shape[3].get_length())
        # uint8 if the preprocessing is in the graph.
        self._dtype = model.input(0).get_element_type().to_dtype()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads or available_threads(),
            "NUM_STREAMS": 1,
            # Without this, OpenVINO uses fewer threads than requested if two of them share a core.
            "ENABLE_HYPER_THREADING": True,
            # With pinning, every process pins its first thread to the same core, so two servers on two cores would share one.
            "ENABLE_CPU_PINNING": False,
        }
        with _CORE_LOCK:
            core = _core()
        try:
            self._compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise CheckpointError(f"{what}: OpenVINO can't compile it ({_reason(error)})") from None
        self._request, self._one_at_a_time = self._compiled.create_infer_request(), threading.Lock()
        self._places = {name: place for place, output in enumerate(self._compiled.outputs) for name in output.get_names()}
        # An output with two names is listed under both.
        self.output_names = tuple(self._places)
        self.info = RuntimeInfo(
            runtime="openvino",
            version=str(ov.__version__).split("-")[0],
            device="cpu",
            threads=int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
        )

    def run(self, images: Array) -> Array:
        """Returns the logits of images; see :class:`growtas.export.runtimes.base.Session`."""
        return np.asarray(self._infer(images, [0])[0], np.float32)

    def run_named(self, images: Array, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Returns several outputs of one run; see :class:`growtas.export.runtimes.base.NamedOutputs`."""
        return dict(zip(names, self._infer(images, [self._places[name] for name in names]), strict=True))

    def _infer(self, images: Array, places: list[int]) -> list[NDArray[Any]]:
        with self._one_at_a_time:
            result = self._request.infer([np.ascontiguousarray(images, self._dtype)], share_inputs=True, share_outputs=True)
            # Copied, because the next run overwrites the request's memory.
            return [np.array(result[place]) for place in places]

    def timer(self, images: Array) -> Timer:
        """Returns a function that times a run on inputs set in advance; see :class:`growtas.export.runtimes.base.Session`."""
        import openvino

        request = self._compiled.create_infer_request()
        # The tensor copies the array, because a tensor that shares the array's memory does not keep the array alive.
        request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(images, self._dtype), shared_memory=False))

        def once() -> float:
            start = time.perf_counter_ns()
            request.infer(share_outputs=True)
            return (time.perf_counter_ns() - start) / 1e6

        return once

    def __enter__(self) -> OpenVINOSession:
        return self

    def __exit__(self, *error: object) -> None:
        del self._request, self._compiled


def write_ir(onnx: str | Path, xml: str | Path) -> None:
    """Writes an ONNX file as an IR: the graph to ``xml``, and the weights to a ``.bin`` of the same name beside it.

    The same ONNX file and version of OpenVINO make the same bytes. If the model can't be written, existing files are unchanged.
    After a crash while the two files are moved into place there is no ``.xml``, so one model's graph never meets another's weights.

    Raises:
        BuildError: OpenVINO refused to write the model.
        CheckpointError: OpenVINO can't read the ONNX file.
        MissingExtra: openvino is not installed.
        OutputError: the files can't be written.
        UsageError: ``xml`` does not end in ``.xml``.
    """
    ov = _module("writing an OpenVINO IR")
    onnx, xml = Path(onnx), Path(xml)
    if xml.suffix != ".xml":
        raise UsageError(f"{xml}: an OpenVINO IR is a file that ends in .xml")
    model, _ = _read(ov, onnx)
    for index, op in enumerate(model.get_ordered_ops()):
        # OpenVINO numbers unnamed nodes over all models that the process has read, which would make the bytes differ.
        if op.get_friendly_name() == op.get_name():
            op.set_friendly_name(f"{op.get_type_name()}.{index}")
    weights = xml.with_suffix(".bin")
    ensure_writable(xml.parent)
    for target in (weights, xml):
        if target.is_dir():
            raise OutputError(f"{target}: can't be written (it is a folder)")
    with staged(xml) as folder:
        try:
            folder.mkdir()
            ov.save_model(model, str(folder / xml.name), compress_to_fp16=False)
            # One model's weights may load with another model's graph and compute nonsense, so the old graph goes first.
            xml.unlink(missing_ok=True)
            os.replace(folder / weights.name, weights)
            os.replace(folder / xml.name, xml)
        except OSError as error:
            raise OutputError(f"{xml}: can't be written ({error.strerror or error})") from None
        except RuntimeError as error:
            if shutil.disk_usage(folder).free < _LITTLE_SPACE:  # OpenVINO's error does not say it
                raise OutputError(f"{xml}: can't be written ({os.strerror(errno.ENOSPC)})") from None
            raise BuildError(f"{xml}: OpenVINO can't write the IR ({_reason(error)})") from None


def _read(ov: Any, path: str | Path | bytes) -> tuple[Any, str]:
    """Reads a model from images to logits; returns it with its name in messages."""
    what = "the model" if isinstance(path, bytes) else str(path)
    if not isinstance(path, bytes) and not Path(path).is_file():
        raise CheckpointError(f"{what}: there is no such file")
    if not isinstance(path, bytes):
        (read_ir if what.endswith(".xml") else check_onnx)(path)
    # The frontend is chosen by name: otherwise OpenVINO also tries the readers of other formats, which print messages.
    frontend = ov.frontend.FrontEndManager().load_by_framework("ir" if what.endswith(".xml") else "onnx")
    try:
        model = frontend.convert(frontend.load(io.BytesIO(path) if isinstance(path, bytes) else what))
    except Exception as error:  # the readers' exceptions share no base class
        raise CheckpointError(f"{what}: OpenVINO can't load it ({_reason(error)})") from None
    # The first output is the logits; probabilities and classes may follow.
    if len(model.inputs) != 1 or not model.outputs:
        raise CheckpointError(
            f"{what}: OpenVINO can't load it ({len(model.inputs)} inputs and {len(model.outputs)} outputs, not images and logits)"
        )
    shape = model.input(0).get_partial_shape()
    if shape.rank.is_dynamic or len(shape) != 4 or any(shape[axis].is_dynamic for axis in (1, 2, 3)):
        raise CheckpointError(f"{what}: its input is {shape}, not (batch, channels, height, width) of one image size")
    _flatten_gathers(model)
    return model, what


def _flatten_gathers(model: Any) -> None:
    """Replaces GatherElements with the same index for all images and heads by Gather with one flat index; in place and exact.

    OpenVINO has compiled code only for Gather: on one core of an Intel Xeon, AutoFormer-T's published subnet spends 0.5 ms instead
    of 4.6 ms in its 26 gathers, of 45 ms in fp32. In ONNX Runtime GatherElements is faster, so the file keeps it.
    """
    from openvino import opset8

    for op in model.get_ordered_ops():
        if op.get_type_name() != "GatherElements":
            continue
        data, broadcast = op.input_value(0), op.input_value(1).get_node()
        shape, result_shape = data.get_partial_shape(), op.get_output_partial_shape(0)
        if broadcast.get_type_name() != "Broadcast" or broadcast.input_value(0).get_node().get_type_name() != "Constant":
            continue
        index = np.asarray(broadcast.input_value(0).get_node().get_data())
        # Data is (batch, heads, N, columns) and the index (1, 1, N, taken), expanded only along the first two axes.
        if len(shape) != 4 or index.ndim != 4 or index.shape[:2] != (1, 1) or shape[2].is_dynamic or shape[3].is_dynamic:
            continue
        rows, columns = shape[2].get_length(), shape[3].get_length()
        whole = tuple(size.get_length() if size.is_static else None for size in (result_shape[2], result_shape[3]))
        if op.get_attributes()["axis"] not in (-1, 3) or index.shape[2] != rows or index.shape[2:] != whole or index.min() < 0:
            continue
        flat = (np.arange(rows)[:, None] * columns + index[0, 0]).astype(np.int32)
        # A zero keeps the size of its axis.
        matrix = opset8.reshape(data, np.array([0, 0, rows * columns]), special_zero=True)
        gather = opset8.gather(matrix, flat, np.array(2))
        gather.set_friendly_name(op.get_friendly_name())
        op.output(0).replace(gather.output(0))


def _reason(error: Exception) -> str:
    """The innermost message, on one line, without locations in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines()]
    messages = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join((messages or [type(error).__name__])[-1].split())[:160]
