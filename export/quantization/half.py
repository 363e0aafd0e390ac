"""Converts a graph to fp16 or bf16. Kept layers, and the images and logits at the boundary, stay in fp32."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from growtas.errors import BuildError
from growtas.export.graph.edit import add_constant, constant, enumerate_names, insert_before, is_within, layer_name
from growtas.export.graph.tensors import FP16_MAX
from growtas.export.quantization.precisions import ONNX_TYPES

_FLOAT = ir.DataType.FLOAT
_SUFFIXES = {_FLOAT: "_fp32", ir.DataType.FLOAT16: "_fp16", ir.DataType.BFLOAT16: "_bf16"}


def cast_floats(model: ir.Model, precision: str, kept: Collection[str], subject: str) -> None:
    """Changes the type of fp32 tensors in place. The graph's inputs and outputs stay in fp32.

    Weights are stored in the new type. A kept layer reads and writes fp32, with a Cast on either side.

    Args:
        model: a graph whose types are inferred.
        precision: ``fp16`` or ``bf16``.
        kept: layers, or parts of the model, that stay in fp32.
        subject: name of the graph in messages.

    Raises:
        BuildError: weights exceed the range of the type; the message names their nodes.
    """
    graph, dtype = model.graph, ir.DataType[ONNX_TYPES[precision]]
    floats = {value for node in graph for value in (*node.inputs, *node.outputs) if value is not None and value.dtype == _FLOAT}
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    too_large: list[str] = []
    for node in tuple(graph):
        touched = not floats.isdisjoint((*node.inputs, *node.outputs))
        target = dtype if touched and not is_within(layer_name(node), kept) else _FLOAT
        for index, value in enumerate(node.inputs):
            if value is None or value not in floats or value.dtype == target:
                continue
            if (value, target) not in casts:
                name, numbers = f"{value.name}{_SUFFIXES[target]}", constant(value)
                if numbers is None:
                    casts[value, target] = insert_before(node, "Cast", [value], name, f"cast_{name}", to=int(target))
                else:
                    if dtype == ir.DataType.FLOAT16 and not np.abs(numbers).max(initial=0) <= FP16_MAX:
                        too_large.append(str(node.name))
                        numbers = np.zeros_like(numbers)
                    casts[value, target] = add_constant(graph, name, numbers, target)
            node.replace_input_with(index, casts[value, target])
        if target == _FLOAT:
            continue
        _cast_attributes(node, target)
        for value in node.outputs:
            if value not in floats:
                continue
            value.dtype = target
            if value.is_graph_output():
                casts[value, _FLOAT] = _cast_output(graph, node, value)
    if too_large:
        raise BuildError(f"{subject}: {enumerate_names(too_large)} has weights beyond fp16's {FP16_MAX:.0f}")


def _cast_output(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    """Adds a Cast that writes an output of the graph. The tensor before it, which other nodes may read, gets a new name."""
    output = ir.Value(name=value.name, type=ir.TensorType(_FLOAT), shape=value.shape)
    graph.outputs[graph.outputs.index(value)] = output
    graph.insert_after(node, ir.node("Cast", [value], {"to": int(_FLOAT)}, outputs=[output], name=f"cast_{output.name}"))
    assert value.dtype is not None
    value.name = f"{value.name}{_SUFFIXES[value.dtype]}"
    return output


def _cast_attributes(node: ir.Node, dtype: ir.DataType) -> None:
    """Changes the types and tensors in a node's attributes."""
    for name, attribute in tuple(node.attributes.items()):
        if node.op_type == "Cast" and name == "to" and attribute.as_int() == _FLOAT:
            node.attributes[name] = ir.AttrInt64(name, int(dtype))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FLOAT:
            tensor = attribute.as_tensor()
            node.attributes[name] = ir.AttrTensor(name, ir.Tensor(tensor.numpy().astype(dtype.numpy()), name=tensor.name))
