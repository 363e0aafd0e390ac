"""Changes a graph's tokens from a matrix of ``batch * N`` rows to the shape ``(batch, N, channels)``.

The fp32 graph keeps tokens as a matrix (:mod:`growtas.export.graph.inference_vit`). Quantised graphs differ:

* For GPUs all tokens get their batch axis back (:func:`restore_batch_axis`), and biases are added after the products.
* For CPUs products stay Gemm, with the bias inside, and only norms work on ``(batch, N, channels)`` (:func:`reshape_norms`):
  OpenVINO fuses a norm with the quantisation of its output only in this shape.

Both functions need a graph with inferred shapes, change it in place, and are exact. They do not change a graph whose tokens are no
matrix.

OpenVINO moves the products' scales through the following reshape to heads. It fails if that reshape also separates the images,
unless the Add of a bias is in between.
"""

from __future__ import annotations

import onnx_ir as ir

from growtas.export.graph.edit import (
    add_constant,
    constant,
    forget_types,
    insert_after,
    insert_before,
    is_linear,
    numbers,
    operand,
    remove_unused,
)
from growtas.export.quantization.qdq import add_bias


def restore_batch_axis(model: ir.Model) -> None:
    """Restores the tokens' batch axis: Gemm becomes MatMul and Add, and the reshapes to a matrix are removed.

    A bias of zeros is omitted. The weights keep their names.
    """
    graph, tokens = model.graph, _token_count(model)
    if tokens is None:
        return
    pooled = _pooled(graph)
    # Tensors that were a matrix of all images' tokens.
    rows: set[ir.Value | None] = set()
    for node in tuple(graph):
        if not node.inputs:
            continue
        source, out, rank = operand(node), node.outputs[0], len(_constant_shape(node))
        if rank == 2 and _rank(source) == 3:
            out.replace_all_uses_with(source)
            rows.add(source)
        elif rank == 3 and source in rows:
            out.replace_all_uses_with(source)
        elif rank == 2:
            sizes = [-1, tokens, _constant_shape(node)[1]]
            node.replace_input_with(1, add_constant(graph, f"{out.name}_shape", sizes, ir.DataType.INT64))
            node.attributes.clear()
            rows.add(out)
        elif node.op_type == "Gemm" and source in rows and is_linear(node):
            rows.add(_as_product(node))
        elif not rows.isdisjoint(node.inputs):
            # The channel axis is the last one in both shapes. Of the other operators only Split names its axis.
            if node.op_type == "Split":
                node.attributes["axis"] = ir.AttrInt64("axis", -1)
            rows.update(value for value in node.outputs if _rank(value) == 2 and value not in pooled)
    remove_unused(model)
    forget_types(model)


def reshape_norms(model: ir.Model) -> None:
    """Puts reshapes around the norms, so that they work on ``(batch, N, channels)``."""
    graph, tokens = model.graph, _token_count(model)
    if tokens is None:
        return

    def shape(*sizes: int) -> ir.Value:
        return add_constant(graph, f"shape.{'.'.join(map(str, sizes))}", [-1, *sizes], ir.DataType.INT64)

    pooled = _pooled(graph)
    for norm in tuple(graph):
        scale = constant(operand(norm, 1)) if norm.op_type == "LayerNormalization" else None
        if scale is None or _rank(operand(norm)) != 2 or operand(norm) in pooled:
            continue
        (channels,), name, normed = scale.shape, norm.outputs[0].name, norm.outputs[0]
        norm.replace_input_with(0, insert_before(norm, "Reshape", [operand(norm), shape(tokens, channels)], f"{name}_parted"))
        matrix = insert_after(norm, "Reshape", [shape(channels)], f"{name}_rows", renamed=f"{name}_normed")
        for reader in matrix.consumers():
            # The pooling has its own reshape to (batch, N, channels), which is no longer needed.
            if _constant_shape(reader) and _rank(reader.outputs[0]) == 3:
                reader.outputs[0].replace_all_uses_with(normed)
    remove_unused(model)
    forget_types(model)


def _pooled(graph: ir.Graph) -> set[ir.Value]:
    """The output of the pooling, a matrix with a row for each image."""
    pooling = (node for node in graph if node.op_type != "Reshape" and node.inputs and _rank(operand(node)) == 3)
    return {value for node in pooling for value in node.outputs if _rank(value) == 2}


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _constant_shape(node: ir.Node) -> list[int]:
    """The constant shape of a Reshape; empty for other nodes."""
    shape = constant(operand(node, 1)) if node.op_type == "Reshape" else None
    return [] if shape is None else [int(size) for size in shape]


def _token_count(model: ir.Model) -> int | None:
    """The number of tokens N, from the reshape to heads, ``(-1, N, heads, head_dim)``."""
    shapes = (_constant_shape(node) for node in model.graph)
    return next((shape[1] for shape in shapes if len(shape) == 4), None)


def _as_product(gemm: ir.Node) -> ir.Value:
    """Replaces a Gemm by MatMul and Add, with the weight ``(inputs, outputs)`` under its old name; returns the last output."""
    weight, bias = operand(gemm, 1), operand(gemm, 2) if len(gemm.inputs) > 2 else None
    if gemm.attributes.get_int("transB", 0):
        matrix = numbers(weight).T.copy()
        weight.const_value, weight.shape = ir.Tensor(matrix, name=weight.name), ir.Shape(matrix.shape)
        # Layers may share an equal weight, so its other readers must not transpose it either.
        for reader in weight.consumers():
            reader.attributes.pop("transB", None)
    gemm.op_type = "MatMul"
    gemm.attributes.clear()
    gemm.resize_inputs(2)
    return gemm.outputs[0] if bias is None else add_bias(gemm, bias)
