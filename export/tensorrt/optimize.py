"""Rewrites an ONNX file into equivalent graphs for which TensorRT needs less memory; plans are built from them.

TensorRT-RTX 1.7 places tensors in regions of memory, each as large as its largest tensor. Which of two graphs needs less memory
depends on the batch, so both are built. Both compute the same numbers up to rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from growtas.errors import BuildError, CheckpointError
from growtas.export.graph.attention_fusion import VALUES, fuse_attention
from growtas.export.graph.edit import (
    add_constant,
    constant,
    forget_types,
    infer_types,
    insert_before,
    load_typed_model,
    numbers,
    operand,
    remove_unused,
    replace_tensor,
    to_proto,
)

_PATCHES = "patch_embed.weight"
"""Beginning of the name of the patch convolution's weight in growtas' files; timm's models, the baselines, have another one."""


def plan_graphs(path: Path) -> list[bytes]:
    """Returns the serialised graphs to build: only the file itself, if it is not growtas' network.

    Args:
        path: an ONNX file in any precision.

    Raises:
        OSError: the file can't be read.
    """
    try:
        model = load_typed_model(path)
    except (BuildError, CheckpointError):
        # The compiler will report the error.
        return [path.read_bytes()]
    if not any(node.op_type == "Conv" and str(operand(node, 1).name).startswith(_PATCHES) for node in model.graph):
        return [path.read_bytes()]
    numbers_first(model)
    patches_as_rows(model)
    # In fp32 both graphs need the same memory.
    fp32 = fuse_attention(model, joined=True) > 0
    forget_types(model)
    graphs = [to_proto(model).SerializeToString()]
    if not fp32 and gather_values(model):
        graphs.append(to_proto(model).SerializeToString())
    return graphs


def numbers_first(model: ir.Model) -> int:
    """Moves the cast of pixels before the transpose, in place; returns how often. TensorRT can cast uint8 but not transpose it."""
    count = 0
    for cast in tuple(model.graph):
        if cast.op_type != "Cast":
            continue
        transpose = operand(cast).producer()
        if transpose is None or transpose.op_type != "Transpose" or len(transpose.outputs[0].uses()) != 1:
            continue
        pixels = operand(transpose)
        if not pixels.is_graph_input() or pixels.dtype != ir.DataType.UINT8:
            continue
        # The tensor between the two nodes keeps its name.
        numbers, transposed = cast.outputs[0], transpose.outputs[0]
        cast.replace_input_with(0, pixels)
        numbers.replace_all_uses_with(transposed)
        transpose.replace_input_with(0, numbers)
        numbers.name, transposed.name = transposed.name, numbers.name
        transposed.type, transposed.shape = numbers.type, transposed.shape
        numbers.type = numbers.shape = None
        model.graph.insert_before(transpose, cast)
        count += 1
    return count


def patches_as_rows(model: ir.Model) -> int:
    """Replaces convolutions whose patches don't overlap by matrix products, in place; returns their number.

    In half precision TensorRT copies a convolution's input and adds a fourth channel of zeros. A product's input is not larger than
    the image.
    """
    convolutions = [node for node in model.graph if node.op_type == "Conv" and _is_patches(node)]
    for node in convolutions:
        _write_rows(model.graph, node)
    return len(convolutions)


def _is_patches(node: ir.Node) -> bool:
    weight, image = constant(operand(node, 1)), operand(node).shape
    if weight is None or image is None or len(image) != 4:
        return False
    kernel, attributes = list(weight.shape[2:]), node.attributes
    plain = attributes.get_int("group", 1) == 1 and set(attributes.get_ints("dilations", [1, 1])) == {1}
    unpadded = not any(attributes.get_ints("pads", [0] * 4)) and attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    sizes = zip(image[2:], kernel, strict=True)
    fits = image[1] == weight.shape[1] and all(isinstance(size, int) and size % patch == 0 for size, patch in sizes)
    return plain and unpadded and fits and list(attributes.get_ints("strides", [1, 1])) == kernel


def _write_rows(graph: ir.Graph, node: ir.Node) -> None:
    weight, image, name, count = numbers(operand(node, 1)), operand(node).shape, str(node.name), 0
    assert image is not None
    outputs, channels, height, width = weight.shape
    down, across = int(image[2]) // height, int(image[3]) // width  # type: ignore[arg-type]

    def add(operator: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
        nonlocal count
        count += 1
        return insert_before(node, operator, inputs, f"{name}.{count - 1}", f"{name}.{operator}_{count - 1}", **attributes)

    def reshape(x: ir.Value, suffix: str, shape: list[int]) -> ir.Value:
        return add("Reshape", [x, add_constant(graph, f"{name}.{suffix}", shape, ir.DataType.INT64)])

    parts = reshape(operand(node), "parts", [-1, channels, down, height, across, width])
    rows = reshape(add("Transpose", [parts], perm=[0, 2, 4, 1, 3, 5]), "rows", [-1, down * across, channels * height * width])
    matrix = add_constant(graph, f"{name}.matrix", weight.reshape(outputs, -1).T, ir.DataType.from_numpy(weight.dtype))
    tokens = add("MatMul", [rows, matrix])
    if len(node.inputs) > 2:
        tokens = add("Add", [tokens, operand(node, 2)])
    grid = reshape(add("Transpose", [tokens], perm=[0, 2, 1]), "grid", [-1, outputs, down, across])
    replace_tensor(node.outputs[0], grid)
    graph.remove(node, safe=True)


def gather_values(model: ir.Model) -> int:
    """Gathers v's columns of the attention output with an index, in place; returns the number of attentions.

    One kernel then gathers these columns together with the sums for the relative position, after which the output can be freed.
    """
    slices = [node for node in model.graph if node.op_type == "Slice" and str(node.name).endswith(f".{VALUES}")]
    if not slices:
        return 0
    shapes = {value.name: value.shape for node in infer_types(model).graph for value in node.outputs}
    for node in slices:
        attended = operand(node)
        flat = next(reader for reader in attended.consumers() if reader.op_type == "Reshape")
        (_, start), (tokens, end) = (numbers(operand(node, place)) for place in (1, 2))
        length = int(shapes[attended.name][-1])  # type: ignore[index,arg-type]
        index = np.arange(tokens)[:, None] * length + np.arange(start, end)
        columns = add_constant(model.graph, f"values.{tokens}.{length}.{start}", index, ir.DataType.INT64)
        values = insert_before(node, "Gather", [flat.outputs[0], columns], str(node.name), axis=2)
        replace_tensor(node.outputs[0], values)
    remove_unused(model)
    return len(slices)
