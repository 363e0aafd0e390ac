"""Checks ONNX files and OpenVINO IRs of other people before a parser or a runtime reads them.

Parsers and runtimes take memory for what a file declares: elements of a few bytes, tensors without values, functions that call
functions, constants that a runtime computes when it loads the file. The checks read the encoded file itself, one pass without
copies, and import no package, so that they add nothing to a measurement of a runtime's memory.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError
from growtas.files import open_regular

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Domains of operators that ONNX Runtime and OpenVINO know by themselves; a file's own functions may have other domains."""
_ELEMENTS, _GRAPHS, _NODES = 300_000, 8, 100_000
"""Limits: elements of a file, graphs inside graphs, nodes after functions are expanded."""
_COMPUTED, _TIMES = 2**24, 8
"""Runtimes compute constants of constants when they load a file: at most so many numbers, and so many times those in the file."""
_XML_BYTES, _XML_DEPTH = 30_000_000, 64
# The messages inside each message of onnx.proto, by the number of the field.
_PARTS = {
    "model": {7: "graph", 8: "opset", 14: "entry", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 14: "entry", 15: "sparse", 16: "entry"},
    "node": {5: "attribute", 9: "entry"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "function": {7: "node", 9: "opset", 11: "attribute", 12: "value", 14: "entry"},
    "tensor": {13: "entry", 16: "entry"},
    "sparse": {1: "tensor", 2: "tensor"},
}
# Bits of a number by the data type of a tensor; a text (8) has no fixed size.
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16, 17: 8, 18: 8,
    19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
_TEXTS = ("entry", "opset")
"""Messages of which every field is a text or a number; protobuf gives a text that is not UTF-8 as bytes."""
_TEXT, _INT32, _INT64 = 8, 6, 7
# Operators whose result is no larger than their first input, those that keep its values, and those that join two shapes.
_SAME_VALUES = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}
_SAME_SHAPE = {
    "Identity", "Cast", "Neg", "Abs", "Sqrt", "Reciprocal", "Exp", "Log", "Sin", "Cos", "Floor", "Ceil", "Round", "Not", "Sigmoid",
    "Tanh", "Erf", "Softmax", "Clip", "Trilu", "CumSum", "DequantizeLinear", "QuantizeLinear", "Relu", "Gelu", "Sign", "Tan",
    "LayerNormalization", "ScatterND", "ScatterElements", "LogSoftmax", "IsNaN", "IsInf", "HardSigmoid",
}  # fmt: skip
_REDUCING = {f"Reduce{name}" for name in ("Prod", "Min", "Max", "Sum", "Mean", "L2")}
_NO_LARGER = _SAME_SHAPE | _SAME_VALUES | _REDUCING
_NO_LARGER |= {"Transpose", "Slice", "Size", "Split", "ArgMax", "ArgMin", "Compress", "DepthToSpace", "SpaceToDepth"}
_BROADCAST = {
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And",
    "Or", "Where",
}  # fmt: skip
# OpenVINO's names of these operators.
_IR_KINDS = {
    "Convert": "Cast", "ConvertLike": "Cast", "FakeQuantize": "Cast", "Negative": "Neg", "Multiply": "Mul", "Subtract": "Sub",
    "Divide": "Div", "Power": "Pow", "Maximum": "Max", "Minimum": "Min", "Select": "Where", "ShapeOf": "Shape",
    "StridedSlice": "Slice", "Broadcast": "Expand", "Result": "Identity",
}  # fmt: skip
_PRODUCT = frozenset(("Gather", "GatherElements", "MatMul", "Gemm"))
_IR_BITS = {"f64": 64, "f32": 32, "f16": 16, "bf16": 16, "f8e4m3": 8, "f8e5m2": 8, "f8e8m0": 8, "i64": 64, "u64": 64, "i32": 32}
_IR_BITS |= {"u32": 32, "i16": 16, "u16": 16, "i8": 8, "u8": 8, "boolean": 8, "i4": 4, "u4": 4, "nf4": 4, "f4e2m1": 4}


def check_onnx(path: str | Path, *, weights: bool = True) -> None:
    """Checks an ONNX file: what it names, and that nothing in it declares more than the file holds.

    Allowed are operators of :data:`DOMAINS` and of the file's own functions, and weights in regular files of the same folder.

    Args:
        weights: whether weights in files beside it will be read too.

    Raises:
        CheckpointError: the file is not readable ONNX, or breaks a rule.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            if not file.seek(0, os.SEEK_END):
                raise ValueError("it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                check = _OnnxCheck(data, path.parent if weights else None)
                count = check.run()
                _check_computed(check.nodes, check.stored, count if len(check.calls) > 1 else 1)
    except OSError as error:
        raise CheckpointError(f"{path}: the file can't be read ({error.strerror or error})") from None
    except (ValueError, IndexError, UnicodeDecodeError, struct.error) as error:
        reason = "it is damaged" if isinstance(error, IndexError | UnicodeDecodeError | struct.error) else str(error)
        raise CheckpointError(f"{path}: not a readable .onnx file ({reason})") from None


@dataclass
class _Tensor:
    dims: list[int] = field(default_factory=list)
    kind: int = 0
    data: tuple[int, int, int] | None = None
    """Number of the field with the values, and their place."""
    texts: int = 0
    external: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Constant:
    """How many numbers a constant has; its shape and, of a short list of whole numbers, its values, where they are known."""

    size: int
    shape: list[int] | None = None
    values: list[int] | None = None


def _check_computed(nodes: list[tuple[str, list[str], list[str]]], stored: dict[str, _Constant], times: int) -> None:
    """Checks the constants that a runtime computes of constants when it loads the file.

    Args:
        nodes: kind, inputs and outputs of each node, in order.
        stored: the constants in the file.
        times: how often the nodes of a function may be copied.

    Raises:
        ValueError: they have too many numbers, or their size can't be known.
    """
    known, computed = dict(stored), 0
    limit = _COMPUTED + _TIMES * sum(constant.size for constant in stored.values())
    for kind, inputs, outputs in nodes:
        given = [known.get(name) for name in inputs if name]
        if kind == "Constant":
            continue
        constants = [constant for constant in given if constant is not None]
        if len(constants) < len(given):  # it depends on the images
            shape = known.get(inputs[1]) if kind in ("Expand", "Tile") and len(inputs) > 1 else None
            if shape is not None and shape.values is not None and math.prod(max(1, n) for n in shape.values) > limit:
                raise ValueError(f"its operator {kind} makes a tensor of more than {limit:,} numbers")
            continue
        made = _computed(kind, constants)
        if made is None:
            raise ValueError(f"the size of a constant that its operator {kind[:60]!r} computes can't be known")
        computed += made.size * times * max(1, len(outputs))
        if computed > limit:
            raise ValueError(f"its constants that are computed when it is loaded have more than {limit:,} numbers")
        known.update(dict.fromkeys(outputs, made))


def _computed(kind: str, inputs: list[_Constant]) -> _Constant | None:
    """An upper bound of the constant that an operator computes of constants; None if there is none."""
    if not inputs:
        return None
    first, sizes = inputs[0], [constant.size for constant in inputs]
    values = inputs[-1].values
    if kind == "Shape":
        return _Constant(64, values=first.shape)
    if kind == "Reshape" and len(inputs) == 2:
        return _Constant(first.size, _reshaped(first.size, values), first.values)
    if kind in _NO_LARGER:
        return _Constant(first.size, first.shape if kind in _SAME_SHAPE else None, first.values if kind in _SAME_VALUES else None)
    if kind == "Concat":
        joined = [constant.values for constant in inputs]
        return _Constant(sum(sizes), values=None if None in joined else [n for part in joined for n in part or ()])
    if kind in _BROADCAST:
        shapes = [constant.shape for constant in inputs if constant.shape is not None]
        if len(shapes) == len(inputs):
            rank = max(map(len, shapes))
            shape = [max(axis) for axis in zip(*([1] * (rank - len(shape)) + shape for shape in shapes), strict=True)]
            return _Constant(math.prod(shape), shape)
        return _Constant(math.prod(sizes))
    if kind in _PRODUCT:
        return _Constant(sizes[0] * sizes[1]) if len(sizes) > 1 else None
    if kind == "Range" and all(constant.values for constant in inputs) and len(inputs) == 3:
        start, stop, step = (constant.values[0] for constant in inputs if constant.values)
        return _Constant(max(0, -((start - stop) // step))) if step else None
    if kind in ("ConstantOfShape", "Expand", "Tile") and values is not None:
        repeated = math.prod(max(1, number) for number in values)
        return _Constant(repeated * (1 if kind == "ConstantOfShape" else first.size))
    return None


def _reshaped(size: int, shape: list[int] | None) -> list[int] | None:
    """The shape of a constant of so many numbers after a Reshape, if it is known; one of the sizes may be -1."""
    if not shape or min(shape) < -1 or 0 in shape or shape.count(-1) > 1:
        return None
    others = math.prod(number for number in shape if number > 0)
    full = [size // others if number == -1 else number for number in shape]
    return full if math.prod(full) == size else None


class _OnnxCheck:
    """The check of one file, and of the weights in a folder, unless it is None."""

    def __init__(self, data: mmap.mmap, folder: Path | None) -> None:
        self.data, self.folder, self.elements = data, folder, 0
        # Kind, inputs and outputs of the nodes, in order; the constants, which follow the nodes of their graph.
        self.nodes: list[tuple[str, list[str], list[str]]] = []
        self.stored: dict[str, _Constant] = {}
        # For the main graph ("") and each function: the operators that it calls.
        self.calls: dict[Any, Counter[tuple[str, str]]] = {}
        self.scope: Any = ""

    def run(self) -> int:
        """Checks the file; returns the number of its nodes after functions are expanded."""
        self.calls[""] = Counter()
        self.walk("model", 0, len(self.data), 0)
        known = self.calls.keys()
        for scope, calls in self.calls.items():
            for name in calls:
                if name[0] not in DOMAINS and name not in known:
                    raise ValueError(f"its operator {name[1][:60]!r} is of {name[0][:60]!r}; legal are operators of ONNX")
                if name == scope:
                    raise ValueError(f"its function {name[1][:60]!r} calls itself")
        return self.expanded("", {}, 0)

    def expanded(self, scope: Any, known: dict[Any, int], depth: int) -> int:
        """The number of nodes of a graph or function after all calls of functions are replaced by the functions' nodes."""
        if depth > _GRAPHS * 8:
            raise ValueError("its functions call each other without end, or too deeply")
        if scope not in known:
            count = sum(
                times * (self.expanded(name, known, depth + 1) if name in self.calls else 1)
                for name, times in self.calls[scope].items()
            )
            if count > _NODES:
                raise ValueError(f"its functions expand to more than {_NODES:,} nodes")
            known[scope] = count
        return known[scope]

    def number(self, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = self.data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
            shift += 7
            if shift > 63:
                raise ValueError("it is damaged")

    def fields(self, at: int, end: int) -> Iterator[tuple[int, Any]]:
        """Yields the fields of a message: the number, and a whole number or the place of the bytes."""
        while at < end:
            self.elements += 1
            if self.elements > _ELEMENTS:
                raise ValueError(f"it holds more than {_ELEMENTS:,} elements")
            tag, at = self.number(at)
            value: Any
            if tag & 7 == 0:
                value, at = self.number(at)
            elif tag & 7 == 2:
                length, at = self.number(at)
                value, at = (at, at + length), at + length
            elif tag & 7 in (1, 5):
                value, at = (at, at + (8 if tag & 7 == 1 else 4)), at + (8 if tag & 7 == 1 else 4)
            else:
                raise ValueError("it is damaged")
            if at > end:
                raise ValueError("it is truncated")
            yield tag >> 3, value

    def text(self, place: Any) -> str:
        return self.data[place[0] : min(place[1], place[0] + 4096)].decode() if isinstance(place, tuple) else ""

    def walk(self, message: str, at: int, end: int, depth: int) -> None:
        parts = _PARTS.get(message, {})
        for number, value in self.fields(at, end):
            part = parts.get(number)
            if part is None or not isinstance(value, tuple):
                if message in _TEXTS and isinstance(value, tuple):
                    self.data[value[0] : value[1]].decode()
                continue
            if part == "training":
                raise ValueError("it holds a training, which growtas does not read")
            if part == "graph" and depth >= _GRAPHS:
                raise ValueError(f"its graphs are nested more than {_GRAPHS} deep")
            if part == "node":
                self.node(value[0], value[1], depth)
            elif part == "tensor":
                self.tensor(*value)
            elif part == "function":
                self.function(value[0], value[1], depth)
            else:
                self.walk(part, value[0], value[1], depth + (part == "graph"))

    def function(self, at: int, end: int, depth: int) -> None:
        names = {number: self.text(value) for number, value in self.fields(at, end) if number in (1, 10)}
        self.scope = names.get(10, ""), names.get(1, "")
        if self.scope in self.calls:
            raise ValueError(f"it holds the function {self.scope[1][:60]!r} twice")
        self.calls[self.scope] = Counter()
        self.walk("function", at, end, depth)
        self.scope = ""

    def node(self, at: int, end: int, depth: int) -> None:
        inputs: list[str] = []
        outputs: list[str] = []
        kind = domain = ""
        constant = None
        for number, value in self.fields(at, end):
            if number == 1:
                inputs.append(self.text(value))
            elif number == 2:
                outputs.append(self.text(value))
            elif number == 4:
                kind = self.text(value)
            elif number == 7:
                domain = self.text(value)
            elif number == 5 and isinstance(value, tuple):
                for inner, place in self.fields(*value):
                    if inner == 5 and isinstance(place, tuple):
                        constant = self.tensor(*place)
                    elif inner in _PARTS["attribute"] and isinstance(place, tuple):
                        part = _PARTS["attribute"][inner]
                        if part == "graph" and depth >= _GRAPHS:
                            raise ValueError(f"its graphs are nested more than {_GRAPHS} deep")
                        if part == "tensor":
                            self.tensor(*place)
                        else:
                            self.walk(part, place[0], place[1], depth + (part == "graph"))
        self.calls[self.scope][domain, kind] += 1
        if kind == "Constant":
            self.stored.update(dict.fromkeys(outputs, constant or _Constant(1)))
        self.nodes.append((kind, inputs, outputs))

    def tensor(self, at: int, end: int) -> _Constant:
        """Checks that a tensor's values are as many as its shape says."""
        tensor, name, external = _Tensor(), "", False
        for number, value in self.fields(at, end):
            if number == 1:
                tensor.dims += self.numbers(*value) if isinstance(value, tuple) else [value]
            elif number == 2 and isinstance(value, int):
                tensor.kind = value
            elif number == 6:
                tensor.texts += 1
            elif number in (4, 5, 7, 9, 10, 11):
                tensor.data = (number, *value) if isinstance(value, tuple) else (number, 0, 0)
            elif number == 8:
                name = self.text(value)
            elif number == 13 and isinstance(value, tuple):
                entry = {inner: self.text(place) for inner, place in self.fields(*value)}
                tensor.external[entry.get(1, "")] = entry.get(2, "")
            elif number == 14:
                external = value == 1
        count = math.prod(tensor.dims)
        if any(dim >= 2**63 for dim in tensor.dims) or count > 2**62:
            raise ValueError(f"the shape of its tensor {name[:60]!r} is not one that fits into memory")
        if external:
            if self.folder is not None:
                self.beside(self.folder, tensor, name, count)
            return self.store(name, _Constant(count, tensor.dims))
        if tensor.kind == _TEXT:
            fits = tensor.texts == count
        elif tensor.data is None:
            fits = not count
        elif tensor.data[0] == 9 and tensor.kind in _BITS:
            fits = tensor.data[2] - tensor.data[1] == -(-count * _BITS[tensor.kind] // 8)
        else:
            # A packed number of variable length has at least one byte; small numbers may share one.
            fits = tensor.data[2] == 0 or (count + 7) // 8 <= tensor.data[2] - tensor.data[1] <= 16 * count
        if not fits:
            raise ValueError(f"the shape of its tensor {name[:60]!r} does not match its values")
        values = None
        if tensor.kind in (_INT32, _INT64) and tensor.data is not None and 0 < count <= 64:
            number, start, stop = tensor.data
            letter = "q" if tensor.kind == _INT64 else "i"
            if number == 9:
                values = list(struct.unpack(f"<{count}{letter}", self.data[start:stop]))
            else:  # protobuf writes a negative number as its complement
                values = [value - 2**64 if value >= 2**63 else value for value in self.numbers(start, stop)]
        return self.store(name, _Constant(count, tensor.dims, values))

    def store(self, name: str, constant: _Constant) -> _Constant:
        self.stored[name] = constant
        return constant

    def numbers(self, at: int, end: int) -> list[int]:
        values = []
        while at < end:
            value, at = self.number(at)
            values.append(value)
            if len(values) > 64:
                raise ValueError("a tensor has more than 64 dimensions")
        return values

    def beside(self, folder: Path, tensor: _Tensor, name: str, count: int) -> None:
        """Checks that values outside the file lie in a regular file of the same folder, and inside that file."""
        location = tensor.external.get("location", "")
        place = folder / location
        inside = bool(location) and not Path(location).is_absolute() and ".." not in Path(location).parts
        if not inside or place.is_symlink() or not place.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"its tensor {name[:60]!r} lies in {location[:60]!r}, which is not a file in the same folder")
        if not place.is_file():
            raise ValueError(f"its tensor {name[:60]!r} lies in {location[:60]!r}, and there is no such file")
        size = place.stat().st_size
        offset = _whole(tensor.external.get("offset", "0"))
        length = _whole(tensor.external.get("length") or str(size - offset))
        if offset + length > size or length < 0 or length != -(-count * _BITS.get(tensor.kind, 0) // 8):
            raise ValueError(f"the shape of its tensor {name[:60]!r} does not match its values in {location[:60]!r}")


def _whole(text: str) -> int:
    if re.fullmatch(r"-?\d{1,18}", text, re.ASCII) is None:
        raise ValueError(f"a place in a file is {text[:40]!r}, which is not a whole number")
    return int(text)


class _Builder(ElementTree.TreeBuilder):
    """Builds a tree of limited depth and size, without document types, which could define entities."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = self.count = 0

    def doctype(self, name: str, pubid: str, system: str) -> None:
        raise ValueError("an IR has no document type declaration")

    def start(self, tag: Any, attrs: Any) -> Any:
        self.depth += 1
        self.count += 1
        if self.depth > _XML_DEPTH or self.count > _ELEMENTS:
            raise ValueError(f"it holds more than {_ELEMENTS:,} elements, or elements nested more than {_XML_DEPTH} deep")
        return super().start(tag, attrs)

    def end(self, tag: Any) -> Any:
        self.depth -= 1
        return super().end(tag)


def read_ir(path: str | Path) -> ElementTree.Element:
    """Reads the graph of an OpenVINO IR, and checks it: operators of OpenVINO, and constants that lie inside the ``.bin``.

    Raises:
        CheckpointError: the file is not an IR, or breaks a rule.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            text = file.read(_XML_BYTES + 1)
        if len(text) > _XML_BYTES:
            raise ValueError(f"it has more than {_XML_BYTES:,} bytes")
        root = ElementTree.fromstring(text, ElementTree.XMLParser(target=_Builder()))
        if root.tag != "net" or root.find("layers") is None:
            raise ValueError("it is not an OpenVINO IR")
        weights = path.with_suffix(".bin")
        size = weights.stat().st_size if weights.is_file() else None
        for layer in root.iter("layer"):
            _check_layer(layer, size)
        if size is not None:  # OpenVINO loads no IR without its .bin
            _check_ir_computed(root, weights)
    except OSError as error:
        raise CheckpointError(f"{path}: the file can't be read ({error.strerror or error})") from None
    except (ValueError, SyntaxError, struct.error) as error:
        raise CheckpointError(f"{path}: not a readable .xml file ({' '.join(str(error).split())[:120]})") from None
    return root


def _check_layer(layer: ElementTree.Element, size: int | None) -> None:
    kind, version = layer.get("type", ""), layer.get("version", "")
    if re.fullmatch(r"opset\d{1,2}", version) is None:
        raise ValueError(f"its operator {kind[:40]!r} is of {version[:40]!r}; legal are OpenVINO's opsets")
    settings = layer.find("data")
    if kind != "Const" or settings is None:
        return
    shape = [_whole(axis.strip()) for axis in settings.get("shape", "").split(",") if axis.strip()]
    offset, length = _whole(settings.get("offset", "0")), _whole(settings.get("size", "0"))
    bits = _IR_BITS.get(settings.get("element_type", "").lower())
    if min([offset, length, *shape]) < 0 or (bits is not None and length != -(-math.prod(shape) * bits // 8)):
        raise ValueError(f"the shape of its constant {layer.get('name', '')[:60]!r} does not match its values")
    if size is not None and offset + length > size:
        raise ValueError(f"its constant {layer.get('name', '')[:60]!r} reaches beyond the end of the .bin")


def _check_ir_computed(root: ElementTree.Element, weights: Path) -> None:
    """Checks the constants of an IR that OpenVINO computes when it loads the file; see :func:`_check_computed`."""
    stored: dict[str, _Constant] = {}
    sources: dict[str, list[str]] = {}
    kinds = dict[str, str]()
    for layer in root.iterfind("layers/layer"):
        name, kind, settings = layer.get("id", ""), layer.get("type", ""), layer.find("data")
        sources[name], kinds[name] = [], _IR_KINDS.get(kind, kind)
        if kind == "Const" and settings is not None:
            shape = [_whole(axis.strip()) for axis in settings.get("shape", "").split(",") if axis.strip()]
            stored[name] = _Constant(math.prod(shape), shape, _ir_values(settings, math.prod(shape), weights))
    edges = sorted(root.iterfind("edges/edge"), key=lambda edge: _whole(edge.get("to-port", "0")))
    following: dict[str, list[str]] = {}
    for edge in edges:
        source, target = edge.get("from-layer", ""), edge.get("to-layer", "")
        if source not in kinds or target not in kinds:
            raise ValueError("an edge leads to a layer that is not there")
        sources[target].append(source)
        following.setdefault(source, []).append(target)
    # A layer's turn comes when all its inputs had theirs.
    waiting = {name: len(given) for name, given in sources.items()}
    ready = [name for name, count in waiting.items() if not count]
    for name in ready:
        for target in following.get(name, ()):
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    nodes = [(kinds[name], sources[name], [name]) for name in ready if kinds[name] not in ("Const", "Parameter")]
    _check_computed(nodes, stored, 1)


def _ir_values(settings: ElementTree.Element, count: int, weights: Path) -> list[int] | None:
    """The values of a short list of whole numbers in the ``.bin``."""
    letter = {"i64": "q", "i32": "i"}.get(settings.get("element_type", "").lower())
    if letter is None or not 0 < count <= 64:
        return None
    with open_regular(weights) as file:
        file.seek(_whole(settings.get("offset", "0")))
        return list(struct.unpack(f"<{count}{letter}", file.read(_whole(settings.get("size", "0")))))
