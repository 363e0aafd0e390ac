"""Which precision an ONNX file really is in: read from its tensors' types, not from its name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import Any

from growtas.errors import BuildError, ConfigError, choices
from growtas.export.graph.edit import constants, enumerate_names, is_kept, layer_name, load_graph, tensor_types

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
QUANTISED = ("int8", "fp8")
_NAMES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "INT8": "int8", "FLOAT8E4M3FN": "fp8"}
_PRODUCTS = ("Gemm", "MatMul", "Conv")
_CHANGES_TYPE = ("Cast", "QuantizeLinear", "DequantizeLinear")
# What conversions append to a weight's name.
_SUFFIXES = re.compile(r"(_q|_fp16|_bf16|_fp32)+$")


def inspect_precision(path: Path) -> dict[str, Any]:
    """What the operators of a file compute in.

    Returns:
        ``operators``: how often each operator computes in each type, such as ``{"Gemm": {"int8": 52, "fp32": 1}}``; ``layers``: the
        type of each layer with weights, and of every other product; ``initializers``: how many numbers are stored in each type;
        ``input`` and ``output``: their types.

    Raises:
        BuildError, CheckpointError: as :func:`growtas.export.graph.edit.load_graph`.
    """
    proto = load_graph(path)
    types, stored = tensor_types(proto), Counter[str]()
    operators: dict[str, Counter[str]] = {}
    for node, kind in _kinds(proto):
        operators.setdefault(node.op_type, Counter())[kind] += 1
    for entry in proto.graph.initializer:
        stored[_name(entry.data_type)] += prod(entry.dims)
    return {
        "operators": {name: dict(counts) for name, counts in sorted(operators.items())},
        "layers": {name: kind for name, kind, _ in _layers(proto)},
        "initializers": dict(stored),
        "input": _name(types[proto.graph.input[0].name]),
        "output": _name(types[proto.graph.output[0].name]),
    }


def check_precision(path: Path, precision: str, *, kept: Collection[str] = ()) -> dict[str, Any]:
    """Fail where a file isn't in a precision.

    In fp32, fp16 and bf16 every node that computes with floats must be of that type, in int8 and fp8 every Linear and convolution;
    but for what was kept in fp32 on purpose. The logits must be float32, and the images are no half or quantised numbers.

    Args:
        kept: layers (:func:`~growtas.export.graph.edit.layer_name`) that may be higher.

    Returns:
        What :func:`inspect_precision` does.

    Raises:
        BuildError: it isn't; the message names the layers that are not.
        ConfigError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; legal are {choices(PRECISIONS)}")
    proto, found = load_graph(path), inspect_precision(path)
    weights = constants(proto)
    if precision in QUANTISED:
        asked = [(name, kind) for name, kind, weighted in _layers(proto) if weighted]
    else:
        floats = set(_NAMES.values())
        asked = [(_label(node, weights), kind) for node, kind in _kinds(proto) if kind in floats and node.op_type != "Cast"]
    wrong = [f"{name} ({kind})" for name, kind in asked if kind != precision and not is_kept(name, kept)]
    if wrong:
        raise BuildError(f"{path.name}: not in {precision}: {enumerate_names(dict.fromkeys(wrong))}")
    if precision not in (kind for _, kind in asked):
        raise BuildError(f"{path.name}: not in {precision}: no layer is")
    if found["output"] != "fp32" or found["input"] in (*QUANTISED, "fp16", "bf16"):
        raise BuildError(f"{path.name}: its images are {found['input']} and its logits {found['output']}, not fp32")
    return found


def _kinds(proto: Any) -> list[tuple[Any, str]]:
    """Every node with the type it computes in: a product's is that of its operands, before they were dequantised."""
    types = tensor_types(proto)
    makers = {name: node for node in proto.graph.node for name in node.output}

    def operand(name: str) -> str:
        maker = makers.get(name)
        while maker is not None and maker.op_type == "Reshape":
            name = maker.input[0]
            maker = makers.get(name)
        return _name(types.get(maker.input[0] if maker is not None and maker.op_type == "DequantizeLinear" else name, 0))

    found = []
    for node in proto.graph.node:
        if node.op_type in _PRODUCTS:
            kinds = [operand(name) for name in node.input[:2]]
            # With one operand quantised the product is in the other's type.
            kind = kinds[0] if kinds[0] == kinds[1] else next((k for k in kinds if k not in QUANTISED), "mixed")
        else:
            # A node that reads floats and writes integers (or the other way round) computes in the floats' type, but for a Cast.
            names = list(node.output) if node.op_type in _CHANGES_TYPE else [*node.output, *node.input]
            kinds = [_name(types.get(name, 0)) for name in names if name]
            kind = next((k for k in kinds if k in _NAMES.values()), kinds[0])
        found.append((node, kind))
    return found


def _layers(proto: Any) -> list[tuple[str, str, bool]]:
    """Products by name, with their type, and whether they are layers with weights."""
    weights = constants(proto)
    makers = {name: node for node in proto.graph.node for name in node.output}
    found = []
    for node, kind in _kinds(proto):
        if node.op_type in _PRODUCTS:
            source = node.input[1]
            while source in makers and makers[source].op_type in _CHANGES_TYPE:
                source = makers[source].input[0]
            plain = _SUFFIXES.sub("", source)
            constant = source in weights
            name = plain.removesuffix(".weight") if constant and "." in plain else node.name
            found.append((name, kind, constant and (node.op_type == "Conv" or plain.endswith(".weight"))))
    return found


def _label(node: Any, weights: dict[str, Any]) -> str:
    """A node's layer, whatever its weight is called by now."""
    return _SUFFIXES.sub("", layer_name(node, weights)).removesuffix(".weight")


def _name(kind: int) -> str:
    import onnx

    name = onnx.TensorProto.DataType.Name(kind)
    return _NAMES.get(name, name.lower())
