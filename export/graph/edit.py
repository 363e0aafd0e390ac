"""Loads, edits and saves ONNX graphs on onnx_ir: what exports, conversions and optimisations share.

Passes take an ``ir.Model`` and change it in place. They keep tensors' names and put new nodes where they are read, so that a graph
stays in an order that can be run.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from growtas.errors import BuildError, CheckpointError
from growtas.export.graph.versions import least_ir_version
from growtas.files import replacing

PREPROCESS, CLASS_NAMES = "preprocess", "class_names"
"""Keys of a file's metadata: the record of the preprocessing and the class names, both as JSON."""
# Messages name this many; the rest is counted.
_NAMED = 5
_WEIGHT = ".weight"


def load_proto(path: str | Path, *, weights: bool = True) -> onnx.ModelProto:
    """Reads an ONNX file as protobuf, with the weights that lie in files beside it; the one place that reads ONNX files.

    The standard domain, which may be written ``ai.onnx``, is the empty one in what is returned.

    Args:
        weights: False leaves weights that lie in files beside it where they are.

    Raises:
        CheckpointError: not an ONNX file that can be read, or a file of its weights is missing.
    """
    try:
        proto = onnx.load(path, load_external_data=weights)
    except Exception as error:  # protobuf's, the checker's and the file system's errors share no base class
        raise CheckpointError(f"{path}: not a readable .onnx file ({_one_line(error)})") from None
    if not proto.graph.node:
        raise CheckpointError(f"{path}: not a readable .onnx file (it holds no nodes)")
    for entry in (*proto.opset_import, *proto.graph.node):
        if entry.domain == "ai.onnx":
            entry.domain = ""
    return proto


def load_model(path: str | Path) -> ir.Model:
    """Reads an ONNX file, as :func:`load_proto` does.

    Raises:
        CheckpointError: not an ONNX file that can be read.
    """
    proto = load_proto(path)
    try:
        return ir.from_proto(proto)
    except Exception as error:  # the conversion's exceptions share no base class
        raise CheckpointError(f"{path}: not a readable .onnx file ({_one_line(error)})") from None


def load_typed_model(path: Path) -> ir.Model:
    """Reads an ONNX file and infers the types and shapes of all its tensors.

    Raises:
        BuildError: the types can't be inferred.
        CheckpointError: not an ONNX file that can be read.
    """
    model = load_model(path)
    try:
        return infer_types(model)
    except Exception as error:  # the inference's exceptions share no base class
        raise BuildError(f"{path}: the types of its tensors can't be inferred ({_one_line(error)})") from None


def infer_types(model: ir.Model) -> ir.Model:
    """Returns the model with the types and shapes of all tensors inferred, in addition to those that are known."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(to_proto(model), strict_mode=True))


def forget_types(model: ir.Model) -> None:
    """Removes the types and shapes of all tensors between inputs and outputs, which are stale after an edit."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Converts a model to protobuf: metadata in its own order, and no types of initializers, which state them themselves."""
    proto = ir.to_proto(model)
    typed = [value for value in proto.graph.value_info if value.name not in model.graph.initializers]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(typed)
    onnx.helper.set_model_props(proto, model.metadata_props)
    return proto


def save_model(model: ir.Model, path: str | Path, subject: str) -> None:
    """Checks a model and writes it. Its IR version is raised where its opset needs that.

    Args:
        subject: what messages call the graph, such as ``the converted graph``.

    Raises:
        BuildError: the graph is not valid ONNX.
        OutputError: the file can't be written.
    """
    model.ir_version = max(model.ir_version, least_ir_version(model.opset_imports.get("", 1)))
    data = to_proto(model).SerializeToString()
    try:
        onnx.checker.check_model(data, full_check=True)
    except Exception as error:  # the checker's exceptions share no base class
        raise BuildError(f"{Path(path).name}: {subject} is no valid ONNX ({_one_line(error)})") from None
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def describe(model: ir.Model, *, preprocess: Mapping[str, Any] | None = None, class_names: Sequence[str] | None = None) -> None:
    """Writes into a model's metadata what its images and its classes are, so that a file without a manifest still says it."""
    for key, value in ((PREPROCESS, preprocess), (CLASS_NAMES, class_names)):
        if value is not None:
            model.metadata_props[key] = json.dumps(value, ensure_ascii=False)


def remove_unused(model: ir.Model) -> None:
    """Removes nodes and constants that no output depends on."""
    RemoveUnusedNodesPass()(model)


def operand(node: ir.Node, index: int = 0) -> ir.Value:
    """Returns the tensor that a node reads at a place that must not be empty."""
    value = node.inputs[index]
    assert value is not None, f"{node.name} reads nothing at {index}"
    return value


def producer(value: ir.Value) -> ir.Node:
    """Returns the node that writes a tensor, which must not be an input or a constant."""
    node = value.producer()
    assert node is not None, f"no node writes {value.name}"
    return node


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """Returns the numbers of an initializer; None for any other tensor."""
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def numbers(value: ir.Value) -> NDArray[Any]:
    """Returns the numbers of a tensor that must be an initializer."""
    array = constant(value)
    assert array is not None, f"{value.name} is no constant"
    return array


def add_constant(graph: ir.Graph, name: str, values: Any, dtype: ir.DataType) -> ir.Value:
    """Adds an initializer, rounded to a type; once for a name."""
    if name not in graph.initializers:
        array = np.asarray(values).astype(dtype.numpy(), order="C")
        tensor = ir.Tensor(array, dtype=dtype, name=name)
        graph.register_initializer(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape), const_value=tensor))
    return graph.initializers[name]


def insert_before(
    place: ir.Node, operator: str, inputs: Sequence[ir.Value | None], output: str, name: str | None = None, **attributes: Any
) -> ir.Value:
    """Inserts a node before another one; returns the tensor that it writes.

    The tensor is called ``output``, and so is the node without a ``name`` of its own.
    """
    value = ir.Value(name=output)
    node = ir.node(operator, inputs, dict(sorted(attributes.items())), outputs=[value], name=name or output)
    assert place.graph is not None
    place.graph.insert_before(place, node)
    return value


def insert_after(node: ir.Node, operator: str, others: Sequence[ir.Value], name: str, *, renamed: str) -> ir.Value:
    """Inserts a node that reads what another one writes, and gives its own output to the readers of that.

    Args:
        others: what the new node reads besides.
        name: of the new node.
        renamed: new name of the tensor between the two; the new node's output takes over the old one.
    """
    before, after = node.outputs[0], ir.Value()
    replace_tensor(before, after)
    before.name = renamed
    assert node.graph is not None
    node.graph.insert_after(node, ir.node(operator, [before, *others], outputs=[after], name=name))
    return after


def replace_tensor(old: ir.Value, new: ir.Value) -> None:
    """Lets all readers of a tensor read another one, which takes over its name, type and shape."""
    new.name, new.type, new.shape = old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def layer_name(node: ir.Node) -> str:
    """Returns what people call a node: the path of its weight without ``.weight``, else the node's own name."""
    for value in node.inputs[1:2]:
        if value is not None and value.is_initializer() and "." in str(value.name):
            return str(value.name).removesuffix(_WEIGHT)
    return str(node.name)


def is_within(layer: str, names: Collection[str]) -> bool:
    """Whether a layer is one of those named, or a part of one (``blocks.3`` holds ``blocks.3.fc1``)."""
    return any(layer == name or layer.startswith(f"{name}.") for name in names)


def is_linear(node: ir.Node) -> bool:
    """Whether a node is a Linear layer: a product with one constant matrix, plain but for a transposed weight."""
    if node.op_type not in ("Gemm", "MatMul") or operand(node).is_initializer():
        return False
    weight = operand(node, 1)
    if not weight.is_initializer() or weight.shape is None or len(weight.shape) != 2:
        return False
    if node.op_type == "MatMul":
        # The tables of the relative position are constant matrices too, but no weights of a layer.
        return str(weight.name).endswith(_WEIGHT)
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    bias = constant(operand(node, 2)) if len(node.inputs) > 2 else np.zeros(1)
    return not scaled and not node.attributes.get_int("transA", 0) and bias is not None and bias.ndim == 1


def enumerate_names(names: Iterable[str]) -> str:
    """Lists names for a message: ``a, b, c and 4 more``."""
    listed = list(names)
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
