"""OpenVINO on the CPU, in fp32; and its own file format, an IR (an .xml with a .bin beside it), written from ONNX."""

from __future__ import annotations

import functools
import io
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.errors import BuildError, CheckpointError, MissingExtra, OutputError, UsageError
from growtas.export.runtimes.base import Array, RuntimeInfo, Timer, is_installed
from growtas.files import ensure_writable
from growtas.resources import available_threads

_TELEMETRY = "openvino_telemetry"


def _module(purpose: str) -> Any:
    """The package, imported without its telemetry.

    Importing openvino reports that to its maker over the network and leaves a folder in the user's home, unasked, where the package
    openvino_telemetry is found, which pip installs with it. With that one hidden, openvino uses a stand-in that does nothing.
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
    """The process's one Core, which is never given back; to be called with the lock.

    On CPUs with large registers OpenVINO's CPU plugin gives the thread that loads it another stack for signals, and puts back what
    was there when the last user of that Core goes. With two Cores that go in the order they came in, what is put back is gone: the
    next signal (Ctrl-C, or a child that ends) then kills the process.
    """
    import openvino

    return openvino.Core()


class OpenVINOSession:
    """An ONNX file or an IR in OpenVINO, on the CPU.

    Everything is computed in fp32 (left to itself, OpenVINO takes bf16 on CPUs that have it), in one stream tuned for latency.

    Args:
        path: an ``.onnx`` file, an ``.xml`` file with its ``.bin`` beside it, or the bytes of an ONNX model.
        threads: by default all that this process may use.

    Raises:
        CheckpointError: not a model that OpenVINO can load, or not one from images to logits.
        MissingExtra: openvino is not installed.
    """

    def __init__(self, path: str | Path | bytes, *, threads: int | None = None) -> None:
        ov = _module("running a model in OpenVINO")
        model, what = _read(ov, path)
        shape = model.input(0).get_partial_shape()
        self.image_shape = (shape[1].get_length(), shape[2].get_length(), shape[3].get_length())
        # With the preprocessing in the graph these are pixels, uint8.
        self._dtype = model.input(0).get_element_type().to_dtype()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads or available_threads(),
            "NUM_STREAMS": 1,
            # As many threads as asked for, even where two share a core.
            "ENABLE_HYPER_THREADING": True,
            # Every process would pin its first thread to the same core: two servers on two cores then share one.
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
        # An output that was given two names is there under both.
        self.output_names = tuple(self._places)
        self.info = RuntimeInfo(
            runtime="openvino",
            version=str(ov.__version__).split("-")[0],
            device="cpu",
            threads=int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
        )

    def run(self, images: Array) -> Array:
        """Logits of images; see :class:`growtas.export.runtimes.base.Session`."""
        return np.asarray(self._infer(images, [0])[0], np.float32)

    def run_named(self, images: Array, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Several outputs of one run; see :class:`growtas.export.runtimes.base.NamedOutputs`."""
        return dict(zip(names, self._infer(images, [self._places[name] for name in names]), strict=True))

    def _infer(self, images: Array, places: list[int]) -> list[NDArray[Any]]:
        with self._one_at_a_time:
            result = self._request.infer([np.ascontiguousarray(images, self._dtype)], share_inputs=True, share_outputs=True)
            # Copies: the next run writes over the request's own memory.
            return [np.array(result[place]) for place in places]

    def timer(self, images: Array) -> Timer:
        """A timed run on inputs that are set before; see :class:`growtas.export.runtimes.base.Session`."""
        import openvino

        request = self._compiled.create_infer_request()
        # A tensor with a copy of its own: one that shares an array's memory doesn't keep the array.
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
    """Writes an ONNX file as an IR: ``xml``, and its weights in a ``.bin`` of the same name beside it.

    The same ONNX file and version of OpenVINO make the same bytes. A model that can't be written leaves what was there, and adds
    nothing; a crash while the two files are put in place leaves no ``.xml``, and never one model's graph with another's weights.

    Raises:
        BuildError: OpenVINO refused to write the model.
        CheckpointError: not an ONNX file that OpenVINO can read.
        MissingExtra: openvino is not installed.
        OutputError: the place can't be written.
        UsageError: ``xml`` does not end in ``.xml``.
    """
    ov = _module("writing an OpenVINO IR")
    onnx, xml = Path(onnx), Path(xml)
    if xml.suffix != ".xml":
        raise UsageError(f"{xml}: an OpenVINO IR is a file that ends in .xml")
    model, _ = _read(ov, onnx)
    for index, op in enumerate(model.get_ordered_ops()):
        # What has no name in the ONNX file is numbered by all that the process has read before.
        if op.get_friendly_name() == op.get_name():
            op.set_friendly_name(f"{op.get_type_name()}.{index}")
    weights = xml.with_suffix(".bin")
    ensure_writable(xml.parent)
    for target in (weights, xml):
        if target.is_dir():
            raise OutputError(f"{target}: can't be written (it is a folder)")
    folder = Path(tempfile.mkdtemp(dir=xml.parent, prefix=".growtas-"))
    try:
        ov.save_model(model, str(folder / xml.name), compress_to_fp16=False)
        # The weights of one model may load under the graph of another, and compute nonsense.
        xml.unlink(missing_ok=True)
        os.replace(folder / weights.name, weights)
        os.replace(folder / xml.name, xml)
    except OSError as error:
        raise OutputError(f"{xml}: can't be written ({error.strerror or error})") from None
    except RuntimeError as error:
        raise BuildError(f"{xml}: OpenVINO can't write the IR ({_reason(error)})") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(ov: Any, path: str | Path | bytes) -> tuple[Any, str]:
    """A model from images to logits, and what messages call it."""
    what = "the model" if isinstance(path, bytes) else str(path)
    if not isinstance(path, bytes) and not Path(path).is_file():
        raise CheckpointError(f"{what}: there is no such file")
    # By name: left to choose by itself, OpenVINO tries the readers of other formats too, which print.
    frontend = ov.frontend.FrontEndManager().load_by_framework("ir" if what.endswith(".xml") else "onnx")
    try:
        model = frontend.convert(frontend.load(io.BytesIO(path) if isinstance(path, bytes) else what))
    except Exception as error:  # the readers' exceptions share no base class
        raise CheckpointError(f"{what}: OpenVINO can't load it ({_reason(error)})") from None
    # Logits come first; probabilities and classes may follow.
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
    """Writes GatherElements whose index is the same for all images and heads as Gather by one flat index; in place, exact.

    OpenVINO has compiled code for the one and not for the other: on one core of an Intel Xeon the 26 of AutoFormer-T's published
    subnet take 0.5 ms instead of 4.6 ms, of 45 ms in fp32. ONNX Runtime has it the other way round, so it isn't done in the file.
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
        # (batch, heads, N, columns) by (1, 1, N, taken): what is expanded are the two first axes.
        if len(shape) != 4 or index.ndim != 4 or index.shape[:2] != (1, 1) or shape[2].is_dynamic or shape[3].is_dynamic:
            continue
        rows, columns = shape[2].get_length(), shape[3].get_length()
        whole = tuple(size.get_length() if size.is_static else None for size in (result_shape[2], result_shape[3]))
        if op.get_attributes()["axis"] not in (-1, 3) or index.shape[2] != rows or index.shape[2:] != whole or index.min() < 0:
            continue
        flat = (np.arange(rows)[:, None] * columns + index[0, 0]).astype(np.int32)
        # Zeros stand for the sizes that are there.
        matrix = opset8.reshape(data, np.array([0, 0, rows * columns]), special_zero=True)
        gather = opset8.gather(matrix, flat, np.array(2))
        gather.set_friendly_name(op.get_friendly_name())
        op.output(0).replace(gather.output(0))


def _reason(error: Exception) -> str:
    """The innermost message, on one line, without the places in OpenVINO's source that it passed."""
    lines = [line.strip() for line in str(error).splitlines()]
    messages = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join((messages or [type(error).__name__])[-1].split())[:160]
