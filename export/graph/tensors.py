"""Reads the tensors inside an ONNX graph on real images, and checks whether they exceed the range of fp16."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from growtas.errors import CheckpointError, ParityError, cause
from growtas.export.graph.edit import load_model, to_proto
from growtas.files import finite_or_null

FP16_MAX = 65504.0
"""The largest number of fp16."""
_CHUNK = 4


def session_of_tensors(proto: onnx.ModelProto, names: Iterable[str], *, optimised: bool) -> Any:
    """Opens a graph in ONNX Runtime, on one CPU thread, with the named tensors as its outputs.

    Args:
        optimised: whether ONNX Runtime may fuse nodes, which can change the numbers slightly.
    """
    import onnxruntime

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])


def magnitude(values: NDArray[Any]) -> float:
    """Returns the largest magnitude of an array, 0 if it is empty, and infinity if a number is not finite."""
    largest = float(np.abs(values).max(initial=0))
    # Callers compare by max(), which could lose a NaN.
    return largest if math.isfinite(largest) else math.inf


class OnnxTensors:
    """Reads inner tensors of an ONNX file, without changing the file.

    Attributes:
        nodes: the nodes (``onnx.NodeProto``), in topological order.
        logits: name of the first output.

    Raises:
        CheckpointError: the file can't be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._proto = to_proto(load_model(path))
        self.nodes: list[Any] = list(self._proto.graph.node)
        self.logits: str = self._proto.graph.output[0].name

    def read(self, names: Iterable[str], images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Computes the named tensors for images in the format of the graph's input. The tensors have the graph's types.

        ONNX Runtime computes operators without an fp16 kernel in fp32, and does not round between two such operators. The tensors
        that this method returns are rounded.

        Raises:
            CheckpointError: ONNX Runtime can't run the graph.
        """
        outputs = list(dict.fromkeys(names))
        try:
            session = session_of_tensors(self._proto, outputs, optimised=False)
            values = session.run(outputs, {session.get_inputs()[0].name: images})
        except Exception as error:  # the runtime's exceptions share no base class
            raise CheckpointError(
                f"{self.path}: ONNX Runtime can't compute its inner tensors ({cause(str(error).split(':')[-1])})"
            ) from None
        return dict(zip(outputs, (np.asarray(value) for value in values), strict=True))


@dataclass(frozen=True, kw_only=True)
class HalfRange:
    """The largest value in a graph's fp16 tensors.

    Attributes:
        tensors: number of fp16 tensors; 0 if the graph has none.
        tensor: name of the tensor with the largest magnitude.
        node: operator that writes this tensor.
        largest: this magnitude; infinite after an overflow or for NaN (null in JSON). fp16 ends at 65504.
        images: number of images that were run.
    """

    tensors: int
    tensor: str | None
    node: str | None
    largest: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form for manifests."""
        record: dict[str, Any] = finite_or_null(asdict(self))
        return record


def half_range(path: str | Path, images: NDArray[Any]) -> HalfRange:
    """Finds the largest magnitude in the fp16 tensors of an ONNX file by running it on the CPU.

    The logits alone would not show an overflow, because ONNX Runtime's CPU kernels compute many nodes in fp32, unlike a GPU.

    Args:
        images: input of the graph, which runs a few images at a time; a dozen are enough.

    Raises:
        CheckpointError: as :class:`OnnxTensors`.
    """
    tensors = OnnxTensors(path)
    names = [name for node in tensors.nodes if node.op_type not in ("Constant", "Shape") for name in node.output if name]
    seen: dict[str, float] = {}
    for start in range(0, len(images), _CHUNK):
        for name, value in tensors.read(names, images[start : start + _CHUNK]).items():
            if value.dtype == np.float16 and value.size:
                seen[name] = max(seen.get(name, 0.0), magnitude(value))
    # max() returns the first of several infinite tensors, which is where the overflow began.
    worst = max(seen, key=lambda name: seen[name]) if seen else None
    operators = {name: node.op_type for node in tensors.nodes for name in node.output}
    return HalfRange(
        tensors=len(seen),
        tensor=worst,
        node=operators[worst] if worst else None,
        largest=seen[worst] if worst else 0.0,
        images=len(images),
    )


def check_half_range(path: str | Path, images: NDArray[Any], *, subject: str, consequence: str = "") -> HalfRange:
    """Computes :func:`half_range`, and fails if a tensor overflowed.

    Raises:
        ParityError: an fp16 tensor holds a number that is not finite.
        CheckpointError: as :func:`half_range`.
    """
    measured = half_range(path, images)
    if not math.isfinite(measured.largest):
        after = f"; {consequence}" if consequence else ""
        raise ParityError(
            f"{subject}: the tensor {measured.tensor} ({measured.node}) overflows fp16, which ends at {FP16_MAX:g}, "
            f"on {measured.images} images{after}"
        )
    return measured
