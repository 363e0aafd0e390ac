"""int8 and fp8: puts Q/DQ nodes around Linear layers.

What is quantised, and how:

* Linear layers inside the blocks, with constant weights. The products of attention and of the relative position are not quantised:
  they are small, and by an estimate quantising their inputs costs as much time as it saves.
* Symmetric, with zero points of 0, as TensorRT requires. Activations have one scale per tensor, weights one per output channel.
  ONNX Runtime has fast products only for unsigned activations. It converts these activations itself if DQ directly follows Q.
* int8 weights span -64 to 64. CPUs with only AVX2 add pairs of products in saturating 16-bit numbers, and 2 * 255 * 64 is the
  largest sum that fits.
* Layers that read the same tensor are merged. ONNX Runtime has a fast product only if a quantised tensor has one reader.
* For CPUs a layer's input is quantised before a reshape: the reshape then moves bytes, and OpenVINO can fuse the quantisation of
  tokens with a batch axis, but not of a matrix' rows.
* For CPUs a Gemm keeps its bias in int32, as the start of the products' sums. For GPUs a bias is added after the product, in the
  precision of the rest, because TensorRT accepts no quantised biases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from growtas.export.graph.edit import (
    add_constant,
    insert_after,
    insert_before,
    is_linear,
    layer_name,
    numbers,
    operand,
    remove_unused,
)
from growtas.export.quantization.precisions import ONNX_TYPES

# The numbers for the largest activation and the largest weight. int8 weights stay below saturation; 448 is fp8's largest number.
_TOPS = {"int8": (127, 64), "fp8": (448, 448)}
# Smallest normal number of fp16: smaller scales lose bits if the rest of the graph is fp16.
_MIN_SCALE = 2.0**-14
# Largest int32 bias that leaves room for the products added to it.
_BIAS_TOP = 2**30
_FLOAT = ir.DataType.FLOAT


class Quantisation:
    """How numbers are quantised: symmetrically, to int8 or float8e4m3fn.

    Args:
        precision: ``int8`` or ``fp8``.
        half_scales: whether to round scales to fp16, because they will be stored in fp16.

    Attributes:
        dtype: the quantised type.
        activation_top, weight_top: the numbers for the largest magnitude of activations and of weights.
    """

    def __init__(self, precision: str, *, half_scales: bool) -> None:
        self.dtype, self.half_scales = ir.DataType[ONNX_TYPES[precision]], half_scales
        self.activation_top, self.weight_top = _TOPS[precision]

    def scale(self, magnitude: Any, top: int) -> Any:
        """Returns float32 scales for magnitudes, at least a tiny one where the magnitude is zero."""
        scale = np.maximum(np.asarray(magnitude, np.float64) / top, _MIN_SCALE if self.half_scales else 1e-12)
        return np.asarray(scale.astype(np.float16) if self.half_scales else scale, np.float32)

    def quantised(self, values: Any, scale: Any, top: int) -> Any:
        """Returns the quantised numbers, before the cast to :attr:`dtype`."""
        scaled = np.clip(values / scale, -top, top)
        return np.rint(scaled) if self.dtype == ir.DataType.INT8 else scaled


def merge_linears(model: ir.Model) -> None:
    """Merges Linear layers that read the same tensor (q, k and v) into one, followed by a Split; in place and exact.

    A layer without a bias gets a bias of zeros. The merged weight of ``a.q``, ``a.k`` and ``a.v`` is named ``a.q+k+v``.
    """
    graph = model.graph
    for node in tuple(graph):
        if node.graph is None or node.op_type != "Gemm":
            continue
        x = operand(node)
        layers = [reader for reader in x.consumers() if reader.op_type == "Gemm" and operand(reader) is x and is_linear(reader)]
        if len(layers) < 2:
            continue
        matrices, name = [_matrix(layer) for layer in layers], _joined([layer_name(layer) for layer in layers])
        biases = [_bias(layer, matrix.shape[1]) for layer, matrix in zip(layers, matrices, strict=True)]
        weight = add_constant(graph, f"{name}.weight", np.concatenate(matrices, axis=1), _FLOAT)
        bias = add_constant(graph, f"{name}.bias", np.concatenate(biases), _FLOAT)
        sizes = add_constant(graph, f"{name}.sizes", [matrix.shape[1] for matrix in matrices], ir.DataType.INT64)
        merged = insert_before(node, "Gemm", [x, weight, bias], f"{name}.out", name)
        outputs = [ir.Value(name=layer.outputs[0].name) for layer in layers]
        graph.insert_before(node, ir.node("Split", [merged, sizes], {"axis": 1}, outputs=outputs, name=f"{name}.split"))
        old = [layer.outputs[0] for layer in layers]
        ir.convenience.replace_nodes_and_values(graph, node, layers, [], old, outputs)


def quantise_linears(
    model: ir.Model, layers: Sequence[ir.Node], clipping: Mapping[str, float], how: Quantisation, *, for_cpus: bool
) -> None:
    """Puts Q/DQ before Linear layers, in place.

    Args:
        layers: the Linear layers to quantise, in the graph's order.
        clipping: clipping point of each layer's input, by the tensor's name.
        for_cpus: quantise before reshapes, and also the biases of Gemm; only for int8, and not for TensorRT.
    """
    graph, chosen = model.graph, set(layers)
    activations: dict[ir.Value, ir.Value] = {}
    weights: dict[ir.Value, ir.Value] = {}
    for node in layers:
        x, weight = operand(node), operand(node, 1)
        bias = operand(node, 2) if len(node.inputs) > 2 else None
        if x not in activations:
            reshape = x.producer()
            moved = for_cpus and reshape is not None and reshape.op_type == "Reshape" and chosen.issuperset(x.consumers())
            activations[x] = _quantise_activation(graph, node, clipping[str(x.name)], how, reshape if moved else None)
        inside, quantised_bias = False, list[ir.Value]()
        if weight not in weights:
            # If layers share a weight, only the first may keep its bias inside, because the bias's scale fits one layer's products.
            inside = for_cpus and node.op_type == "Gemm" and bias is not None
            scale, step = _weight_scales(node, clipping[str(x.name)], how, inside)
            quantised_bias = [_quantise_bias(graph, node, scale, step)] if inside else []
            # Stored as (inputs, outputs) with one scale per output channel.
            values = how.quantised(_matrix(node), scale, how.weight_top)
            weights[weight] = _dequantised(graph, node, str(weight.name), values, scale, how.dtype, axis=1)
        inputs = [activations[x], weights[weight], *quantised_bias]
        node.resize_inputs(len(inputs))
        for place, value in enumerate(inputs):
            node.replace_input_with(place, value)
        # The weight is no longer transposed.
        node.attributes.clear()
        if bias is not None and not inside:
            add_bias(node, bias)
    remove_unused(model)


def add_bias(node: ir.Node, bias: ir.Value) -> ir.Value:
    """Adds a bias after a product, in place, unless it is zero. Returns the output."""
    if not numbers(bias).any():
        return node.outputs[0]
    return insert_after(node, "Add", [bias], f"{node.name}_bias", renamed=f"{node.outputs[0].name}_product")


def _quantise_activation(graph: ir.Graph, node: ir.Node, magnitude: float, how: Quantisation, reshape: ir.Node | None) -> ir.Value:
    """Quantises a layer's input, or the tensor that is reshaped to it."""
    x = operand(node)
    name = x.name
    scale = add_constant(graph, f"{name}_scale", how.scale([magnitude], how.activation_top), _FLOAT)
    zero = add_constant(graph, f"{name}_zero", np.zeros(1), how.dtype)
    source = x if reshape is None else operand(reshape)
    quantised = insert_before(node, "QuantizeLinear", [source, scale, zero], f"{name}_q")
    output = f"{name}_dq" if reshape is None else f"{name}_dq_whole"
    restored = insert_before(node, "DequantizeLinear", [quantised, scale, zero], output, f"{name}_dq")
    if reshape is None:
        return restored
    return insert_before(node, "Reshape", [restored, operand(reshape, 1)], f"{name}_dq", reshape.name)


def _weight_scales(node: ir.Node, magnitude: float, how: Quantisation, with_bias: bool) -> tuple[Any, Any]:
    """The scales of a weight's output channels, and the scale of the layer's input."""
    scale = how.scale(np.abs(_matrix(node)).max(axis=0), how.weight_top)
    step = np.float64(how.scale(magnitude, how.activation_top))
    if with_bias:
        scale = np.maximum(scale, (np.abs(_bias(node)) / (_BIAS_TOP * step)).astype(np.float32))
    return scale, step


def _quantise_bias(graph: ir.Graph, node: ir.Node, scale: Any, step: Any) -> ir.Value:
    """Stores a bias in int32, as a multiple of the step of the layer's products."""
    steps = np.rint(_bias(node) / (step * scale))
    if not steps.any():
        # OpenVINO drops a bias of zeros and then fails to move the scales (see layout.py). One step is far smaller than the
        # rounding error of the weights.
        steps[0] = 1
    name = f"{operand(node, 1).name}_bias"
    return _dequantised(graph, node, name, steps, np.float32(step) * scale, ir.DataType.INT32, axis=0)


def _dequantised(graph: ir.Graph, node: ir.Node, name: str, values: Any, scale: Any, dtype: ir.DataType, axis: int) -> ir.Value:
    """Stores quantised numbers with one scale per entry of an axis, and dequantises them before a node."""
    parts = [
        add_constant(graph, f"{name}_q", values, dtype),
        add_constant(graph, f"{name}_scale", scale, _FLOAT),
        add_constant(graph, f"{name}_zero", np.zeros(scale.shape), dtype),
    ]
    return insert_before(node, "DequantizeLinear", parts, f"{name}_dq", axis=axis)


def _matrix(node: ir.Node) -> NDArray[Any]:
    """The weight of a Linear, ``(inputs, outputs)``."""
    matrix = numbers(operand(node, 1))
    return matrix.T if node.attributes.get_int("transB", 0) else matrix


def _bias(node: ir.Node, outputs: int = 0) -> NDArray[Any]:
    """The bias of a Linear; zeros for a layer without one."""
    return numbers(operand(node, 2)) if len(node.inputs) > 2 else np.zeros(outputs, np.float32)


def _joined(layers: list[str]) -> str:
    """``a.q``, ``a.k`` -> ``a.q+k``."""
    parents = {layer.rpartition(".")[0] for layer in layers}
    if len(parents) > 1:
        return "+".join(layers)
    parent = parents.pop()
    return (f"{parent}." if parent else "") + "+".join(layer.rpartition(".")[2] for layer in layers)
