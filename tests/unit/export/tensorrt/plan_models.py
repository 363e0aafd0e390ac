"""An exported model in other precisions, by the plainest means: what plan builders are tried with.

Not how growtas makes such files: nothing is kept in higher precision, and the scales are guesses. Only the types are real.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_QUANTISED = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
PRECISIONS = ("fp32", *_TYPES, *_QUANTISED)


def make_precision(source: Path, target: Path, precision: str) -> Path:
    """Write ``source``, an fp32 file, in another precision; int8 and fp8 are Q/DQ around each weight's product, fp16 elsewhere."""
    proto = onnx.load(source)
    if precision in _QUANTISED:
        _quantise(proto, _QUANTISED[precision])
    if precision != "fp32":
        _cast(proto, _TYPES.get(precision, TensorProto.FLOAT16))
    # Shapes and types of what lies between are stale now.
    proto.graph.ClearField("value_info")
    onnx.save(proto, target)
    return target


def _quantise(proto: onnx.ModelProto, kind: int) -> None:
    """int8 or fp8 weights with a scale a column, and a fixed scale for what they are multiplied with."""
    graph = proto.graph
    weights = {entry.name: entry for entry in graph.initializer}
    added: list[onnx.NodeProto] = []
    seen: set[str] = set()
    top = 127.0 if kind == TensorProto.INT8 else 448.0
    graph.initializer.extend([_tensor("q_scale", np.array(4.0 / top), TensorProto.FLOAT), _tensor("q_zero", np.array(0.0), kind)])
    for node in graph.node:
        weight = weights.get(node.input[1]) if node.op_type in ("Gemm", "MatMul") else None
        if weight is None or len(weight.dims) != 2:
            continue
        values = numpy_helper.to_array(weight)
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        axis = 0 if transposed else 1
        scale = np.maximum(np.abs(values).max(axis=1 - axis), 1e-2) / top
        scaled = values / np.expand_dims(scale, 1 - axis)
        name = f"{weight.name}_{node.name}"
        quantised = np.rint(scaled) if kind == TensorProto.INT8 else scaled
        graph.initializer.extend(
            [
                _tensor(f"{name}_q", quantised, kind),
                _tensor(f"{name}_s", scale, TensorProto.FLOAT),
                _tensor(f"{name}_z", np.zeros_like(scale), kind),
            ]
        )
        x = node.input[0]
        # What q, k and v read is quantised once.
        if x not in seen:
            seen.add(x)
            added.append(helper.make_node("QuantizeLinear", [x, "q_scale", "q_zero"], [f"{x}_q"], name=f"{x}_q"))
            added.append(helper.make_node("DequantizeLinear", [f"{x}_q", "q_scale", "q_zero"], [f"{x}_dq"], name=f"{x}_dq"))
        parts = [f"{name}_q", f"{name}_s", f"{name}_z"]
        added.append(helper.make_node("DequantizeLinear", parts, [f"{name}_w"], name=f"{name}_w", axis=axis))
        node.input[0], node.input[1] = f"{x}_dq", f"{name}_w"
    used = {name for node in graph.node for name in node.input}
    kept = [entry for entry in graph.initializer if entry.name in used or entry.name not in weights]
    graph.ClearField("initializer")
    graph.initializer.extend(kept)
    _insert_before_use(graph, added)


def _insert_before_use(graph: onnx.GraphProto, added: list[onnx.NodeProto]) -> None:
    makers = {node.output[0]: node for node in added}
    ordered: list[onnx.NodeProto] = []

    def place(name: str) -> None:
        node = makers.pop(name, None)
        if node is not None:
            for before in node.input:
                place(before)
            ordered.append(node)

    for node in graph.node:
        for name in node.input:
            place(name)
        ordered.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    graph.ClearField("node")
    graph.node.extend(copies)


def _cast(proto: onnx.ModelProto, kind: int) -> None:
    """Every float tensor in another type; input and output stay float32."""
    graph = proto.graph
    for index, entry in enumerate(graph.initializer):
        if entry.data_type == TensorProto.FLOAT:
            graph.initializer[index].CopyFrom(_tensor(entry.name, numpy_helper.to_array(entry), kind))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_tensor(attribute.t.name, numpy_helper.to_array(attribute.t), kind))
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name in (graph.input[0].name, graph.output[0].name):
                    names[i] = f"{name}_cast"
    first, last = graph.input[0].name, graph.output[0].name
    graph.node.insert(0, helper.make_node("Cast", [first], [f"{first}_cast"], name="cast_in", to=kind))
    graph.node.append(helper.make_node("Cast", [f"{last}_cast"], [last], name="cast_out", to=TensorProto.FLOAT))


def _tensor(name: str, values: np.ndarray, kind: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(kind)), name)
