"""Graphs that plans are built from: what an ONNX file computes, arranged so that TensorRT needs less memory for it.

TensorRT-RTX 1.7 lays tensors into regions of memory, each as large as the largest that is ever in it, in an order of its own: which
of two arrangements needs less depends on the batch, and is found by building both. They compute the same numbers up to rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from growtas.errors import BuildError, CheckpointError
from growtas.export.graph.attention_fusion import VALUES, fuse_attention
from growtas.export.graph.edit import attribute, constants, load_graph, replace_nodes, tensor


def plan_graphs(path: Path) -> list[bytes]:
    """The graphs to choose from, serialised; one, the file as it is, for what is no network of growtas with a relative position.

    Args:
        path: an ONNX file in any precision.

    Raises:
        OSError: the file can't be read.
    """
    try:
        proto = load_graph(path)
    except (BuildError, CheckpointError):
        # The compiler says what is wrong.
        return [path.read_bytes()]
    numbers_first(proto)
    patches_as_rows(proto)
    if fuse_attention(proto, joined=True):
        # In fp32 both arrangements need the same.
        return [proto.SerializeToString()]
    graphs = [proto.SerializeToString()]
    return [*graphs, proto.SerializeToString()] if gather_values(proto) else [path.read_bytes()]


def numbers_first(proto: Any) -> int:
    """Make numbers of pixels before their layout changes, in place; returns how often. TensorRT casts uint8, but moves none."""
    import onnx

    pixels = {value.name for value in proto.graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    instead: dict[str, Any] = {}
    for node in proto.graph.node:
        readers = [reader for reader in proto.graph.node if node.output[0] in reader.input]
        if node.op_type == "Transpose" and node.input[0] in pixels and [reader.op_type for reader in readers] == ["Cast"]:
            # The tensor between the two keeps its name.
            moved, cast = (onnx.NodeProto.FromString(each.SerializeToString()) for each in (node, readers[0]))
            cast.input[0], cast.output[0] = node.input[0], node.output[0]
            moved.input[0], moved.output[0] = node.output[0], readers[0].output[0]
            instead |= {node.output[0]: cast, readers[0].output[0]: moved}
            known = [value for value in proto.graph.value_info if value.name != node.output[0]]
            proto.graph.ClearField("value_info")
            proto.graph.value_info.extend(known)
    if instead:
        replace_nodes(proto, [instead.get(node.output[0], node) for node in proto.graph.node])
    return len(instead) // 2


def patches_as_rows(proto: Any) -> int:
    """Write a convolution whose patches don't overlap as a product of matrices, in place; returns how many there were.

    In half precision TensorRT copies a convolution's input and adds a fourth channel of zeros; the rows are as large as the image.
    """
    import onnx

    known, shapes = constants(proto), _shapes(proto)
    nodes: list[Any] = []
    count = 0
    for node in proto.graph.node:
        weight = known.get(node.input[1]) if node.op_type == "Conv" else None
        image = shapes.get(node.input[0], [])
        if weight is None or len(image) != 4 or not _is_patches(node, weight, image):
            nodes.append(node)
            continue
        nodes += _rows(proto, node, onnx.numpy_helper.to_array(weight), weight.data_type, image)
        count += 1
    if count:
        replace_nodes(proto, nodes)
    return count


def _is_patches(node: Any, weight: Any, image: list[int]) -> bool:
    _, channels, *kernel = weight.dims
    plain = attribute(node, "group", 1) == 1 and set(attribute(node, "dilations", [1, 1])) == {1}
    unpadded = not any(attribute(node, "pads", [0] * 4)) and attribute(node, "auto_pad", b"NOTSET") == b"NOTSET"
    fits = image[1] == channels and all(size and size % patch == 0 for size, patch in zip(image[2:], kernel, strict=True))
    return bool(plain and unpadded and fits and list(attribute(node, "strides", [1, 1])) == list(kernel))


def _rows(proto: Any, node: Any, weight: Any, kind: int, image: list[int]) -> list[Any]:
    import onnx

    outputs, channels, height, width = weight.shape
    down, across = image[2] // height, image[3] // width
    name, made = node.name, list[Any]()

    def add(operator: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        output = output or f"{name}.{len(made)}"
        made.append(onnx.helper.make_node(operator, inputs, [output], name=f"{name}.{operator}_{len(made)}", **attributes))
        return output

    def constant(suffix: str, values: Any, kind: int = onnx.TensorProto.INT64) -> str:
        proto.graph.initializer.append(tensor(f"{name}.{suffix}", values, kind))
        return f"{name}.{suffix}"

    parts = constant("parts", [-1, channels, down, height, across, width])
    patches = add("Transpose", [add("Reshape", [node.input[0], parts])], perm=[0, 2, 4, 1, 3, 5])
    rows = add("Reshape", [patches, constant("rows", [-1, down * across, channels * height * width])])
    tokens = add("MatMul", [rows, constant("matrix", weight.reshape(outputs, -1).T, kind)])
    if len(node.input) > 2:
        tokens = add("Add", [tokens, node.input[2]])
    whole = constant("grid", [-1, outputs, down, across])
    add("Reshape", [add("Transpose", [tokens], perm=[0, 2, 1]), whole], node.output[0])
    return made


def gather_values(proto: Any) -> int:
    """Take v's part of what attention gives by an index, with the masses, in place; returns how many attentions there were.

    What attention gives is then free after one kernel.
    """
    import onnx

    found = _values(proto)
    if not found:
        return 0
    known, shapes = constants(proto), _shapes(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    flat = {node.input[0]: node.output[0] for node in proto.graph.node if node.op_type == "Reshape"}
    ids = {id(node) for node in found}
    nodes: list[Any] = []
    for node in proto.graph.node:
        if id(node) not in ids:
            nodes.append(node)
            continue
        (_, start), (tokens, end) = (onnx.numpy_helper.to_array(known[name]) for name in node.input[1:3])
        length = shapes[node.input[0]][-1]
        name = f"values.{tokens}.{length}.{start}"
        if name not in known:
            entry = tensor(name, np.arange(tokens)[:, None] * length + np.arange(start, end), onnx.TensorProto.INT64)
            proto.graph.initializer.append(entry)
            known[name] = entry
        nodes.append(onnx.helper.make_node("Gather", [flat[node.input[0]], name], list(node.output), name=node.name, axis=2))
    replace_nodes(proto, nodes)
    proto.graph.ClearField("value_info")
    return len(found)


def _values(proto: Any) -> list[Any]:
    """The nodes that cut out v's part; after :func:`gather_values` there are none."""
    return [node for node in proto.graph.node if node.op_type == "Slice" and node.name.endswith(f".{VALUES}")]


def _shapes(proto: Any) -> dict[str, list[int]]:
    """Sizes of tensors, as far as they are known; 0 for those that depend on the batch."""
    values = (*proto.graph.input, *proto.graph.value_info)
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
