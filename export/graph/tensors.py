"""Reads the tensors inside an ONNX file on real images, and tells whether one leaves the range of fp16."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from growtas.errors import CheckpointError, ParityError
from growtas.export.graph.edit import load_model, to_proto
from growtas.files import finite_or_null

FP16_MAX = 65504.0
"""The largest number of fp16."""
_CHUNK = 4


def session_of_tensors(proto: onnx.ModelProto, names: Iterable[str], *, optimised: bool) -> Any:
    """Opens a graph in ONNX Runtime, on one thread of the CPU, with other tensors of it as the outputs.

    Args:
        optimised: whether nodes may be fused; each number is as it is first computed otherwise.
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
    """Returns the largest magnitude of numbers, 0 for none of them; infinite where one is not finite."""
    largest = float(np.abs(values).max(initial=0))
    # NaN would vanish in max(): then nothing is small enough.
    return largest if math.isfinite(largest) else math.inf


class OnnxTensors:
    """An ONNX file whose inner tensors can be read; the file itself is not touched.

    Attributes:
        nodes: the nodes (``onnx.NodeProto``) in topological order, as ONNX prescribes.
        logits: name of the first output.

    Raises:
        CheckpointError: it can't be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._proto = to_proto(load_model(path))
        self.nodes: list[Any] = list(self._proto.graph.node)
        self.logits: str = self._proto.graph.output[0].name

    def read(self, names: Iterable[str], images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Computes tensors, by their names, for images as the graph's input takes them, in the types that the graph has.

        ONNX Runtime computes what has no fp16 kernel in fp32, and leaves out the rounding between two such nodes. A tensor that is
        read is rounded.

        Raises:
            CheckpointError: ONNX Runtime can't run the graph.
        """
        outputs = list(dict.fromkeys(names))
        try:
            session = session_of_tensors(self._proto, outputs, optimised=False)
            values = session.run(outputs, {session.get_inputs()[0].name: images})
        except Exception as error:  # the runtime's exceptions share no base class
            reason = " ".join(str(error).split(":")[-1].split())[:160]
            raise CheckpointError(f"{self.path}: ONNX Runtime can't read the inside of it ({reason})") from None
        return dict(zip(outputs, (np.asarray(value) for value in values), strict=True))


@dataclass(frozen=True, kw_only=True)
class HalfRange:
    """The largest number among a graph's fp16 tensors.

    Attributes:
        tensors: how many fp16 tensors were looked at; 0 for a graph without any.
        tensor, node: the one with the largest magnitude, and the operator that writes it.
        largest: that magnitude; infinite after an overflow, or where a number is none.
        images: how many images were run.
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
    """Finds the largest magnitude of every fp16 tensor of an ONNX file while it runs on the CPU.

    The logits alone would not tell: ONNX Runtime's CPU kernels compute many nodes in fp32, where a GPU overflows.

    Args:
        images: what the graph's input takes; they are run a few at a time. A dozen will do.

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
    # Of several infinite tensors the first one is where it began; dictionaries keep the graph's order.
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
    """Measures :func:`half_range`, and fails where a tensor overflowed.

    Raises:
        ParityError: an fp16 tensor holds something else than finite numbers.
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
