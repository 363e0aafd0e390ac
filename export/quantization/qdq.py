"""int8 and fp8: Q/DQ around Linear layers.

What is quantised, and how:

* Linear layers inside the blocks, with constant weights. The products of attention and of the relative position stay: they are
  small, and by an estimate quantising what they read costs as much as they save.
* Symmetric, with zero points of 0, as TensorRT asks; a scale a tensor for activations, a scale an output channel for weights.
  ONNX Runtime has fast products of unsigned activations only, which it makes of these by itself where DQ is right behind Q.
* int8 weights span -64 to 64. CPUs with AVX2 alone add pairs of products in 16 bits that saturate: 2 * 255 * 64 is the most that
  fits.
* Layers that read the same tensor become one. ONNX Runtime has a fast product only where a quantised tensor is read once.
* For CPUs a tensor that is reshaped to what a layer reads is quantised before: the reshape is of bytes then, and OpenVINO quantises
  tokens with an axis for the batch while it makes them, but not the rows of a matrix.
* For CPUs a Gemm keeps its bias, in int32: the products' sums start from it. For GPUs a bias is added after the product, in the
  precision of what surrounds it: TensorRT takes no quantised ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from growtas.export.graph.edit import attribute, constants, is_linear, layer_name, replace_nodes, tensor

# int8 activations, and int8 weights that don't saturate; the largest number of float8e4m3fn.
ACTIVATION_TOP, WEIGHT_TOP, FP8_TOP = 127, 64, 448
# Smallest normal number of fp16: scales below lose bits where what surrounds them is fp16.
_MIN_SCALE = 2.0**-14
# Largest bias in int32, with room for the products that are added to it.
_BIAS_TOP = 2**30


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """How numbers are quantised.

    Attributes:
        kind: ``TensorProto.INT8`` or ``FLOAT8E4M3FN``.
        activation_top, weight_top: the number that the largest magnitude becomes.
        half_scales: whether scales are rounded to fp16 at once, because they will be stored so.
    """

    kind: int
    activation_top: int
    weight_top: int
    half_scales: bool = False

    def scale(self, magnitude: Any, top: int) -> Any:
        """float32 scales of magnitudes; where all is zero, any scale will do."""
        scale = np.maximum(np.asarray(magnitude, np.float64) / top, _MIN_SCALE if self.half_scales else 1e-12)
        return np.asarray(scale.astype(np.float16) if self.half_scales else scale, np.float32)

    def quantised(self, values: Any, scale: Any, top: int) -> Any:
        """Numbers as stored, before the cast to :attr:`kind`."""
        import onnx

        scaled = np.clip(values / scale, -top, top)
        return np.rint(scaled) if self.kind == onnx.TensorProto.INT8 else scaled


def int8(*, half_scales: bool = False) -> Quantisation:
    """Symmetric int8."""
    import onnx

    return Quantisation(kind=onnx.TensorProto.INT8, activation_top=ACTIVATION_TOP, weight_top=WEIGHT_TOP, half_scales=half_scales)


def fp8(*, half_scales: bool = False) -> Quantisation:
    """float8e4m3fn."""
    import onnx

    return Quantisation(kind=onnx.TensorProto.FLOAT8E4M3FN, activation_top=FP8_TOP, weight_top=FP8_TOP, half_scales=half_scales)


def merge_linears(proto: Any) -> None:
    """Make one Linear, and a Split of its outputs, of those that read the same tensor (q, k and v); in place, exact.

    A layer without a bias gets one of zeros. Of ``a.q``, ``a.k`` and ``a.v`` the new weight is called ``a.q+k+v``.
    """
    import onnx

    weights = constants(proto)
    readers: dict[str, list[Any]] = {}
    for node in proto.graph.node:
        if node.op_type == "Gemm" and is_linear(node, weights):
            readers.setdefault(node.input[0], []).append(node)
    merged = {node.output[0]: group for group in readers.values() if len(group) > 1 for node in group}
    nodes: list[Any] = []
    for node in proto.graph.node:
        group = merged.get(node.output[0])
        if group is None:
            nodes.append(node)
        elif node is group[0]:
            matrices = [_matrix(each, weights) for each in group]
            name = _joined([layer_name(each, weights) for each in group])
            biases = [_bias(each, weights, matrix.shape[1]) for each, matrix in zip(group, matrices, strict=True)]
            sizes = np.array([matrix.shape[1] for matrix in matrices])
            proto.graph.initializer.extend(
                [
                    tensor(f"{name}.weight", np.concatenate(matrices, axis=1), onnx.TensorProto.FLOAT),
                    tensor(f"{name}.bias", np.concatenate(biases), onnx.TensorProto.FLOAT),
                    tensor(f"{name}.sizes", sizes, onnx.TensorProto.INT64),
                ]
            )
            make = onnx.helper.make_node
            nodes.append(make("Gemm", [node.input[0], f"{name}.weight", f"{name}.bias"], [f"{name}.out"], name=name))
            outputs = [each.output[0] for each in group]
            nodes.append(make("Split", [f"{name}.out", f"{name}.sizes"], outputs, name=f"{name}.split", axis=1))
    replace_nodes(proto, nodes)


def quantise_linears(
    proto: Any, clipping: Mapping[str, float], chosen: Callable[[Any], bool], how: Quantisation, *, for_cpus: bool = False
) -> None:
    """Put Q/DQ before the chosen Linear layers, in place.

    Args:
        clipping: magnitude of what each chosen layer reads, by the tensor's name.
        chosen: whether a node, which must be a Linear, is quantised.
        how: see there.
        for_cpus: quantise before reshapes, and the biases of Gemm too; int8 only, and not for TensorRT.
    """
    import onnx

    weights = constants(proto)
    make, add = onnx.helper.make_node, proto.graph.initializer.extend
    nodes: list[Any] = []
    done: set[str] = set()
    reshapes = _moved(proto, chosen) if for_cpus else {}

    def activation(name: str) -> str:
        parts = [f"{name}_scale", f"{name}_zero"]
        if name not in done:
            done.add(name)
            scale = how.scale(clipping[name], how.activation_top)
            add([tensor(parts[0], scale, onnx.TensorProto.FLOAT), tensor(parts[1], np.zeros(()), how.kind)])
            reshape = reshapes.get(name)
            source, out = (name, f"{name}_dq") if reshape is None else (reshape.input[0], f"{name}_dq_whole")
            nodes.append(make("QuantizeLinear", [source, *parts], [f"{name}_q"], name=f"{name}_q"))
            nodes.append(make("DequantizeLinear", [f"{name}_q", *parts], [out], name=f"{name}_dq"))
            if reshape is not None:
                nodes.append(make("Reshape", [out, reshape.input[1]], [f"{name}_dq"], name=reshape.name))
        return f"{name}_dq"

    def weight(node: Any, bias: Any) -> list[str]:
        matrix, name = _matrix(node, weights), node.input[1]
        if name not in done:
            done.add(name)
            scale = how.scale(np.abs(matrix).max(axis=0), how.weight_top)
            step = how.scale(clipping[node.input[0]], how.activation_top)
            if bias is not None:
                scale = np.maximum(scale, (np.abs(bias) / (_BIAS_TOP * np.float64(step))).astype(np.float32))
                steps = np.rint(bias / (np.float64(step) * scale))
                if not steps.any():
                    # OpenVINO drops a bias of zeros, and then moves the scales to where they don't fit (see tokens.py). One step is
                    # far below what the rounding of weights makes.
                    steps[0] = 1
                entries = [steps, step * scale, np.zeros(scale.shape)]
                kinds = [onnx.TensorProto.INT32, onnx.TensorProto.FLOAT, onnx.TensorProto.INT32]
                parts = [f"{name}_bias_q", f"{name}_bias_scale", f"{name}_bias_zero"]
                add([tensor(part, values, kind) for part, values, kind in zip(parts, entries, kinds, strict=True)])
                nodes.append(make("DequantizeLinear", parts, [f"{name}_bias_dq"], name=f"{name}_bias_dq", axis=0))
            parts = [f"{name}_q", f"{name}_scale", f"{name}_zero"]
            add(
                [
                    tensor(parts[0], how.quantised(matrix, scale, how.weight_top), how.kind),
                    tensor(parts[1], scale, onnx.TensorProto.FLOAT),
                    tensor(parts[2], np.zeros(scale.shape), how.kind),
                ]
            )
            nodes.append(make("DequantizeLinear", parts, [f"{name}_dq"], name=f"{name}_dq", axis=1))
        return [f"{name}_dq"] + ([f"{name}_bias_dq"] if bias is not None else [])

    for node in proto.graph.node:
        if node.output[0] in reshapes:
            continue
        if not chosen(node):
            nodes.append(node)
            continue
        bias = _bias(node, weights, 1) if len(node.input) > 2 else None
        # Of layers that share a weight, only the first may have a bias inside: its scale is that of one layer's products.
        inside = for_cpus and node.op_type == "Gemm" and node.input[1] not in done
        inputs, out = [activation(node.input[0]), *weight(node, bias if inside else None)], node.output[0]
        biased = not inside and bias is not None and bool(bias.any())
        nodes.append(make(node.op_type, inputs, [f"{out}_product" if biased else out], name=node.name))
        if biased:
            nodes.append(make("Add", [f"{out}_product", node.input[2]], [out], name=f"{node.name}_bias"))
    replace_nodes(proto, nodes)


def _moved(proto: Any, chosen: Callable[[Any], bool]) -> dict[str, Any]:
    """Reshapes that only chosen layers read, by what they make."""
    readers: dict[str, list[Any]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    reshapes = {node.output[0]: node for node in proto.graph.node if node.op_type == "Reshape"}
    return {name: node for name, node in reshapes.items() if name in readers and all(map(chosen, readers[name]))}


def _matrix(node: Any, weights: dict[str, Any]) -> Any:
    """A Linear's weight, ``(inputs, outputs)``."""
    import onnx

    matrix = onnx.numpy_helper.to_array(weights[node.input[1]])
    return matrix.T if attribute(node, "transB", 0) else matrix


def _bias(node: Any, weights: dict[str, Any], outputs: int) -> Any:
    import onnx

    return onnx.numpy_helper.to_array(weights[node.input[2]]) if len(node.input) > 2 else np.zeros(outputs, np.float32)


def _joined(layers: list[str]) -> str:
    """``a.q``, ``a.k`` -> ``a.q+k``."""
    parents = {layer.rpartition(".")[0] for layer in layers}
    if len(parents) > 1:
        return "+".join(layers)
    parent = parents.pop()
    return (f"{parent}." if parent else "") + "+".join(layer.rpartition(".")[2] for layer in layers)
