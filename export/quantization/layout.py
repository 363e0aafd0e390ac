"""A graph whose Linear layers work on matrices of ``batch * N`` rows, in the form ``(batch, N, channels)``.

The fp32 graph keeps tokens as a matrix (:mod:`growtas.export.graph.inference_vit`). What is quantised does not, or not everywhere:

* For GPUs all tokens get their batch axis back (:func:`part_images`), and biases are added behind the products.
* For CPUs products stay Gemm, whose bias is inside, and only norms work on ``(batch, N, channels)`` (:func:`part_norms`): in a
  matrix OpenVINO does not quantise what a norm gives while it is made.

OpenVINO moves the products' scales through the reshape to heads behind them, and fails where that parts the images as well. An
Add of a bias keeps it from that.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from growtas.export.graph.edit import attribute, constants, is_linear, replace_nodes, tensor


def part_images(proto: Any) -> None:
    """Give tokens their batch axis back, in place and exact: Gemm becomes MatMul and Add, and reshapes to a matrix go.

    A bias of zeros is left out. Layers keep their weights' names. A graph without tokens as a matrix stays as it is.

    Args:
        proto: a graph with the shapes of its tensors inferred.
    """
    import onnx

    make, weights = onnx.helper.make_node, constants(proto)
    ranks, tokens = _ranks(proto), _tokens(proto, weights)
    if tokens is None:
        return
    same: dict[str, str] = {}
    nodes: list[Any] = []
    rows: set[str] = set()
    for node in proto.graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        source, out = node.input[0] if node.input else "", node.output[0]
        shape = _shape(node, weights)
        if shape is not None and len(shape) == 2 and ranks.get(source) == 3:
            same[out] = source
            rows.add(source)
        elif shape is not None and len(shape) == 3 and source in rows:
            same[out] = source
        elif shape is not None and len(shape) == 2:
            name = f"{out}_shape"
            proto.graph.initializer.append(tensor(name, np.array([-1, tokens, shape[1]]), onnx.TensorProto.INT64))
            nodes.append(make("Reshape", [source, name], [out], name=node.name))
            rows.add(out)
        elif node.op_type == "Gemm" and source in rows and is_linear(node, weights):
            _as_product(proto, node, weights)
            biased = len(node.input) > 2 and bool(onnx.numpy_helper.to_array(weights[node.input[2]]).any())
            nodes.append(make("MatMul", list(node.input[:2]), [f"{out}_product" if biased else out], name=node.name))
            if biased:
                nodes.append(make("Add", [f"{out}_product", node.input[2]], [out], name=f"{node.name}_bias"))
            rows.add(out)
        else:
            if rows.intersection(node.input):
                # A matrix' axis of channels is the last one in both forms; of the others only a Split names it.
                for entry in node.attribute:
                    if node.op_type == "Split" and entry.name == "axis":
                        entry.i = -1
                rows.update(name for name in node.output if ranks.get(name) == 2)
            nodes.append(node)
    replace_nodes(proto, nodes)
    # Shapes are others now.
    proto.graph.ClearField("value_info")


def part_norms(proto: Any) -> None:
    """Let norms of rows work on ``(batch, N, channels)``, by reshapes around them, in place and exact.

    A graph without tokens as a matrix stays as it is.

    Args:
        proto: a graph with the shapes of its tensors inferred.
    """
    import onnx

    make, weights = onnx.helper.make_node, constants(proto)
    ranks, tokens = _ranks(proto), _tokens(proto, weights)
    if tokens is None:
        return
    added: set[str] = set()
    nodes: list[Any] = []
    same: dict[str, str] = {}
    rows: dict[str, str] = {}

    def shape(*sizes: int) -> str:
        name = f"shape.{'.'.join(map(str, sizes))}"
        if name not in added:
            added.add(name)
            proto.graph.initializer.append(tensor(name, np.array([-1, *sizes]), onnx.TensorProto.INT64))
        return name

    for node in proto.graph.node:
        source, out = node.input[0] if node.input else "", node.output[0]
        if source in rows and _shape(node, weights) is not None and len(node.input) == 2 and ranks.get(out) == 3:
            # What pools the tokens parts them itself.
            same[out] = rows[source]
            continue
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type != "LayerNormalization" or ranks.get(source) != 2 or node.input[1] not in weights:
            nodes.append(node)
            continue
        (channels,) = weights[node.input[1]].dims
        parted, normed = f"{out}_parted", f"{out}_normed"
        nodes.append(make("Reshape", [source, shape(tokens, channels)], [parted], name=parted))
        node.input[0], node.output[0] = parted, normed
        nodes += [node, make("Reshape", [normed, shape(channels)], [out], name=f"{out}_rows")]
        rows[out] = normed
    read = {name for node in nodes for name in node.input}
    replace_nodes(proto, [node for node in nodes if node.output[0] in read or node.name != f"{node.output[0]}_rows"])


def _ranks(proto: Any) -> dict[str, int]:
    values = (*proto.graph.input, *proto.graph.value_info)
    return {value.name: len(value.type.tensor_type.shape.dim) for value in values if value.type.tensor_type.HasField("shape")}


def _shape(node: Any, weights: dict[str, Any]) -> list[int] | None:
    """What a Reshape with a constant shape makes."""
    import onnx

    if node.op_type != "Reshape" or node.input[1] not in weights:
        return None
    return [int(size) for size in onnx.numpy_helper.to_array(weights[node.input[1]])]


def _tokens(proto: Any, weights: dict[str, Any]) -> int | None:
    """N, from the reshape of a layer's rows to heads, ``(-1, N, heads, head_dim)``."""
    shapes = (_shape(node, weights) for node in proto.graph.node)
    return next((shape[1] for shape in shapes if shape is not None and len(shape) == 4), None)


def _as_product(proto: Any, node: Any, weights: dict[str, Any]) -> None:
    """Store a Gemm's weight as ``(inputs, outputs)`` under the same name."""
    import onnx

    entry = weights[node.input[1]]
    if attribute(node, "transB", 0):
        entry.CopyFrom(tensor(entry.name, onnx.numpy_helper.to_array(entry).T, onnx.TensorProto.FLOAT))
