"""Loads, edits and saves ONNX graphs with onnx_ir, for exports, conversions and optimisations.

Passes change an ``ir.Model`` in place. They keep the names of tensors, and insert new nodes directly before their readers, so that
the graph stays in topological order.
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

from growtas.errors import BuildError, CheckpointError, cause
from growtas.export.graph.foreign import check_onnx
from growtas.export.graph.versions import least_ir_version
from growtas.files import replacing

PREPROCESS, CLASS_NAMES = "preprocess", "class_names"
"""Keys of a file's metadata: the record of the preprocessing and the class names, both as JSON."""
# Number of names that messages list; the rest is counted.
_NAMED = 5
_WEIGHT = ".weight"


def load_proto(path: str | Path, *, weights: bool = True) -> onnx.ModelProto:
    """Reads an ONNX file as protobuf, with the weights in files beside it. All ONNX files are read here.

    The standard domain, which files may call ``ai.onnx``, is the empty string in the result.

    Args:
        weights: whether to read weights in files beside it.

    Raises:
        CheckpointError: the file is not readable ONNX, breaks a rule of :mod:`growtas.export.graph.foreign`, or a file with its
            weights is missing.
    """
    check_onnx(path, weights=weights)
    try:
        proto = onnx.load(path, load_external_data=weights)
    except Exception as error:  # protobuf's, the checker's and the file system's errors share no base class
        raise CheckpointError(f"{path}: not a readable .onnx file ({cause(error)})") from None
    if not proto.graph.node:
        raise CheckpointError(f"{path}: not a readable .onnx file (it holds no nodes)")
    for entry in (*proto.opset_import, *proto.graph.node):
        if entry.domain == "ai.onnx":
            entry.domain = ""
    return proto


def load_model(path: str | Path) -> ir.Model:
    """Reads an ONNX file like :func:`load_proto`.

    Raises:
        CheckpointError: the file is not readable ONNX.
    """
    proto = load_proto(path)
    try:
        return ir.from_proto(proto)
    except Exception as error:  # the conversion's exceptions share no base class
        raise CheckpointError(f"{path}: not a readable .onnx file ({cause(error)})") from None


def load_typed_model(path: Path) -> ir.Model:
    """Reads an ONNX file and infers the types and shapes of all its tensors.

    Raises:
        BuildError: the types can't be inferred.
        CheckpointError: the file is not readable ONNX.
    """
    model = load_model(path)
    try:
        return infer_types(model)
    except Exception as error:  # the inference's exceptions share no base class
        raise BuildError(f"{path}: the types of its tensors can't be inferred ({cause(error)})") from None


def infer_types(model: ir.Model) -> ir.Model:
    """Returns the model with all types and shapes of tensors; unknown ones are inferred."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(to_proto(model), strict_mode=True))


def forget_types(model: ir.Model) -> None:
    """Removes the types and shapes of all tensors between inputs and outputs, because they may be wrong after an edit."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Converts a model to protobuf. Metadata keeps its order, and the types of initializers are not stored a second time."""
    proto = ir.to_proto(model)
    typed = [value for value in proto.graph.value_info if value.name not in model.graph.initializers]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(typed)
    onnx.helper.set_model_props(proto, model.metadata_props)
    return proto


def save_model(model: ir.Model, path: str | Path, subject: str) -> None:
    """Checks a model and writes it. The IR version is raised if the opset needs a higher one.

    Args:
        subject: name of the graph in messages, such as ``the converted graph``.

    Raises:
        BuildError: the graph is not valid ONNX.
        OutputError: the file can't be written.
    """
    model.ir_version = max(model.ir_version, least_ir_version(model.opset_imports.get("", 1)))
    data = to_proto(model).SerializeToString()
    try:
        onnx.checker.check_model(data, full_check=True)
    except Exception as error:  # the checker's exceptions share no base class
        raise BuildError(f"{Path(path).name}: {subject} is not valid ONNX ({cause(error)})") from None
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def describe(model: ir.Model, *, preprocess: Mapping[str, Any] | None = None, class_names: Sequence[str] | None = None) -> None:
    """Writes the preprocessing and the class names into a model's metadata, so that the file has them without a manifest."""
    for key, value in ((PREPROCESS, preprocess), (CLASS_NAMES, class_names)):
        if value is not None:
            model.metadata_props[key] = json.dumps(value, ensure_ascii=False)


def remove_unused(model: ir.Model) -> None:
    """Removes nodes and constants that no output depends on."""
    RemoveUnusedNodesPass()(model)


def operand(node: ir.Node, index: int = 0) -> ir.Value:
    """Returns a node's input tensor, which must exist."""
    value = node.inputs[index]
    assert value is not None, f"{node.name} has no input {index}"
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
    assert array is not None, f"{value.name} is not a constant"
    return array


def add_constant(graph: ir.Graph, name: str, values: Any, dtype: ir.DataType) -> ir.Value:
    """Adds an initializer with its values rounded to a type; if the name exists already, returns the existing one."""
    if name not in graph.initializers:
        array = np.asarray(values).astype(dtype.numpy(), order="C")
        tensor = ir.Tensor(array, dtype=dtype, name=name)
        graph.register_initializer(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape), const_value=tensor))
    return graph.initializers[name]


def insert_before(
    place: ir.Node, operator: str, inputs: Sequence[ir.Value | None], output: str, name: str | None = None, **attributes: Any
) -> ir.Value:
    """Inserts a node before another one and returns its output tensor, named ``output``. The node's default name is the same."""
    value = ir.Value(name=output)
    node = ir.node(operator, inputs, dict(sorted(attributes.items())), outputs=[value], name=name or output)
    assert place.graph is not None
    place.graph.insert_before(place, node)
    return value


def insert_after(node: ir.Node, operator: str, others: Sequence[ir.Value], name: str, *, renamed: str) -> ir.Value:
    """Inserts a node between another node's output and its readers.

    Args:
        others: further inputs of the new node.
        name: name of the new node.
        renamed: new name of the tensor between the two nodes. The new node's output gets the old name.
    """
    before, after = node.outputs[0], ir.Value()
    replace_tensor(before, after)
    before.name = renamed
    assert node.graph is not None
    node.graph.insert_after(node, ir.node(operator, [before, *others], outputs=[after], name=name))
    return after


def replace_tensor(old: ir.Value, new: ir.Value) -> None:
    """Replaces a tensor by another one for all readers; the new tensor gets its name, type and shape."""
    new.name, new.type, new.shape = old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def layer_name(node: ir.Node) -> str:
    """Returns a readable name of a node: the path of its weight without ``.weight``, or else the node's own name."""
    for value in node.inputs[1:2]:
        if value is not None and value.is_initializer() and "." in str(value.name):
            return str(value.name).removesuffix(_WEIGHT)
    return str(node.name)


def is_within(layer: str, names: Collection[str]) -> bool:
    """Whether a layer has one of the names, or belongs to a part with one of them (``blocks.3.fc1`` belongs to ``blocks.3``)."""
    return any(layer == name or layer.startswith(f"{name}.") for name in names)


def is_linear(node: ir.Node) -> bool:
    """Whether a node is a Linear layer: a product with one constant matrix, without scaling; only the weight may be transposed."""
    if node.op_type not in ("Gemm", "MatMul") or operand(node).is_initializer():
        return False
    weight = operand(node, 1)
    if not weight.is_initializer() or weight.shape is None or len(weight.shape) != 2:
        return False
    if node.op_type == "MatMul":
        # The tables of the relative position are constant matrices too, but not weights of a layer.
        return str(weight.name).endswith(_WEIGHT)
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    bias = constant(operand(node, 2)) if len(node.inputs) > 2 else np.zeros(1)
    return not scaled and not node.attributes.get_int("transA", 0) and bias is not None and bias.ndim == 1


def enumerate_names(names: Iterable[str]) -> str:
    """Lists names for a message: ``a, b, c and 4 more``."""
    listed = list(names)
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")
