"""Reads the precision of an ONNX file from the types of its tensors, and not from its name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from math import prod
from pathlib import Path
from typing import Any

import onnx_ir as ir

from growtas.errors import BuildError, ConfigError, choices
from growtas.export.graph.edit import enumerate_names, is_within, layer_name, load_typed_model, operand
from growtas.export.quantization.precisions import HALVES, ONNX_TYPES, PRECISIONS, QUANTISED

_NAMES = {onnx_name: name for name, onnx_name in ONNX_TYPES.items()}
_PRODUCTS = ("Gemm", "MatMul", "Conv")
_CHANGES_TYPE = ("Cast", "QuantizeLinear", "DequantizeLinear")
# Suffixes that conversions append to a weight's name.
_SUFFIXES = re.compile(r"(_q|_fp16|_bf16|_fp32)+$")


def require_precision(path: Path, precision: str, *, kept: Collection[str] = ()) -> dict[str, Any]:
    """Checks that a file is in a precision.

    In fp32, fp16 and bf16 every node that computes with floats must have that type; in int8 and fp8 every Linear and convolution.
    Layers that were kept on purpose are exempt. The logits must be float32, and the images neither half precision nor quantised.

    Args:
        kept: layers (:func:`~growtas.export.graph.edit.layer_name`) that may have a higher precision.

    Returns:
        ``operators``: how often each operator computes in each type, such as ``{"Gemm": {"int8": 52, "fp32": 1}}``; ``layers``: the
        type of each layer with weights, and of every other product; ``initializers``: how many numbers are stored in each type.

    Raises:
        BuildError: the file is not in the precision (the message names the layers), or its types can't be inferred.
        CheckpointError: the ONNX file can't be read.
        ConfigError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; legal are {choices(PRECISIONS)}")
    graph = load_typed_model(path).graph
    types, layers = [(node, _computes_in(node)) for node in graph], list(_layers(graph))
    if precision in QUANTISED:
        judged = [(name, kind) for name, kind, weighted in layers if weighted]
    else:
        floats = [(layer_name(node), kind) for node, kind in types if node.op_type != "Cast" and kind in PRECISIONS]
        # The layer's original name, without the suffixes of its converted weight.
        judged = [(_SUFFIXES.sub("", name).removesuffix(".weight"), kind) for name, kind in floats]
    wrong = [f"{name} ({kind})" for name, kind in judged if kind != precision and not is_within(name, kept)]
    if wrong:
        raise BuildError(f"{path.name}: not in {precision}: {enumerate_names(dict.fromkeys(wrong))}")
    if precision not in (kind for _, kind in judged):
        raise BuildError(f"{path.name}: not in {precision}: no layer has this precision")
    images, logits = _type_name(graph.inputs[0]), _type_name(graph.outputs[0])
    if logits != "fp32" or images in (*QUANTISED, *HALVES):
        raise BuildError(f"{path.name}: its images are {images} and its logits {logits}, not fp32")
    operators: dict[str, Counter[str]] = {}
    for node, kind in types:
        operators.setdefault(node.op_type, Counter())[kind] += 1
    stored: Counter[str] = Counter()
    for value in graph.initializers.values():
        stored[_type_name(value)] += prod(value.const_value.shape.numpy()) if value.const_value is not None else 0
    return {
        "operators": {name: dict(counts) for name, counts in sorted(operators.items())},
        "layers": {name: kind for name, kind, _ in layers},
        "initializers": dict(stored),
    }


def _computes_in(node: ir.Node) -> str:
    """The type in which a node computes. For a product it is that of its operands before they were dequantised."""
    if node.op_type in _PRODUCTS:
        first, second = (_type_name(_before(operand(node, index))) for index in (0, 1))
        # If only one operand is quantised, the product is in the other's type.
        return first if first == second else next((kind for kind in (first, second) if kind not in QUANTISED), "mixed")
    # A node that reads floats and writes integers, or vice versa, computes in the float type, unless it is a Cast.
    values = [*node.outputs, *(() if node.op_type in _CHANGES_TYPE else node.inputs)]
    kinds = [_type_name(value) for value in values if value is not None and value.name]
    return next((kind for kind in kinds if kind in PRECISIONS), kinds[0])


def _before(value: ir.Value) -> ir.Value:
    """The tensor before reshapes and dequantisation."""
    producer = value.producer()
    while producer is not None and producer.op_type == "Reshape":
        value = operand(producer)
        producer = value.producer()
    return operand(producer) if producer is not None and producer.op_type == "DequantizeLinear" else value


def _layers(graph: ir.Graph) -> Iterator[tuple[str, str, bool]]:
    """The name and type of every product, and whether it is a layer with weights."""
    for node in graph:
        if node.op_type not in _PRODUCTS:
            continue
        source = operand(node, 1)
        while (producer := source.producer()) is not None and producer.op_type in _CHANGES_TYPE:
            source = operand(producer)
        constant, plain = source.is_initializer(), _SUFFIXES.sub("", str(source.name))
        name = plain.removesuffix(".weight") if constant and "." in plain else str(node.name)
        yield name, _computes_in(node), constant and (node.op_type == "Conv" or plain.endswith(".weight"))


def _type_name(value: ir.Value) -> str:
    name = ir.DataType.UNDEFINED.name if value.dtype is None else value.dtype.name
    return _NAMES.get(name, name.lower())
