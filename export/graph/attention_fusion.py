"""Attention with a relative position as one MatMul, Softmax, MatMul, the form that TensorRT compiles to one kernel.

The fp32 graph (:mod:`growtas.export.graph.inference_vit`) takes the attention on the grid's lines by a product of its own, and
gathers by expanded index tensors: that is fastest in ONNX Runtime. For TensorRT it has two faults. In half precision TensorRT
fuses an attention whose Softmax has one reader and whose vectors are as long as a multiple of 8 (in fp32 TensorRT-RTX 1.7 fuses
none). And it keeps expanded tensors for the whole network. So here

* the one-hot lines stand beside v as beside k, padded to the same length, and queries' terms likewise;
* nothing is expanded to the batch: columns of k and v are repeated in the lines' place, times zero, plus a constant;
* gathers are flat: one constant index per position and line, no batch.

The numbers are the same up to rounding. What else plans are built with is in :mod:`growtas.export.tensorrt.optimize`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.export.graph.edit import constants, replace_nodes, tensor

# The last part of the names of the nodes that take v's part of what attention gives.
VALUES = "attended_values"
# Kernels want vectors of a multiple of this many numbers.
_ALIGNED = 8
_LINES_ALIGNED = 32
# onnx.TensorProto.FLOAT, without importing onnx.
_FLOAT = 1


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """The nodes of one attention, by what they compute."""

    terms: Any
    key_product: Any
    keys: Any
    keys_transposed: Any
    weights: Any
    softmax: Any
    mass_product: Any
    masses: Any
    attended: Any
    value_product: Any
    total: Any


@dataclass(kw_only=True)
class _Nodes:
    """New nodes, each named after its attention and its operator."""

    prefix: str
    nodes: list[Any] = field(default_factory=list)

    def add(self, kind: str, inputs: Sequence[str], output: str | None = None, name: str | None = None, **attributes: Any) -> str:
        """Append a node; returns its output."""
        import onnx

        name = f"{self.prefix}.{name or f'{kind}_{len(self.nodes)}'}"
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [output or name], name=name, **attributes))
        return output or name


def fuse_attention(proto: Any, *, joined: bool = False) -> int:
    """Write every attention with a relative position in the fusable form, in place.

    Args:
        proto: a graph of growtas' exporter; one that has no such attention in fp32 stays as it is.
        joined: whether k, the lines and v are one tensor. In fp32, where attention is no single kernel, that frees the tensor of q,
            k and v before the attention weights are there.

    Returns:
        How many were rewritten.
    """
    graph = _Graph(proto)
    found = [attention for node in proto.graph.node if (attention := graph.match(node)) is not None]
    replaced = {id(attention.total): attention for attention in found}
    nodes: list[Any] = []
    for node in proto.graph.node:
        attention = replaced.get(id(node))
        nodes += [node] if attention is None else graph.rewritten(attention, joined)
    rewritten = {id(attention.weights) for attention in found}
    nodes = [node for node in nodes if id(node) not in rewritten]
    replace_nodes(proto, _live(_sorted(nodes), [output.name for output in proto.graph.output]))
    proto.graph.ClearField("value_info")
    return len(found)


class _Graph:
    """A graph, its lookups, and the constants that are added."""

    def __init__(self, proto: Any) -> None:
        self.proto = proto
        self.constants = constants(proto)
        self.producers = {name: node for node in proto.graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def value(self, name: str) -> NDArray[Any]:
        """A constant's value."""
        import onnx

        return np.asarray(onnx.numpy_helper.to_array(self.constants[name]))

    def match(self, softmax: Any) -> _Attention | None:
        """The attention around a Softmax; None for one without a relative position."""
        if softmax.op_type != "Softmax":
            return None
        readers = self.readers.get(softmax.output[0], [])
        mass_product = next((node for node in readers if node.op_type == "MatMul" and node.input[1] in self.constants), None)
        attended = next((node for node in readers if node.op_type == "MatMul" and node is not mass_product), None)
        weights = self.producers.get(softmax.input[0])
        if mass_product is None or attended is None or weights is None or len(readers) != 2:
            return None
        if self.constants[mass_product.input[1]].data_type != _FLOAT:
            return None
        query, keys = (self.producers.get(name) for name in weights.input)
        (masses,) = self.readers[mass_product.output[0]]
        if query is None or keys is None or {query.op_type, keys.op_type} != {"Concat"} or masses.op_type != "GatherElements":
            return None
        terms = self.producers[query.input[1]]
        (value_product,) = self.readers[masses.output[0]]
        (total,) = self.readers[value_product.output[0]]
        return _Attention(
            terms=terms,
            key_product=self.producers[terms.input[0]],
            keys=keys,
            keys_transposed=self.producers[keys.input[0]],
            weights=weights,
            softmax=softmax,
            mass_product=mass_product,
            masses=masses,
            attended=attended,
            value_product=value_product,
            total=total,
        )

    def rewritten(self, attention: _Attention, joined: bool) -> list[Any]:
        """The nodes from q, k and v, each ``(batch, heads, N, head_dim)``, to the sum of both parts; see :func:`fuse_attention`."""
        made = _Nodes(prefix=attention.weights.name)
        lines = self.value(self._source(attention.terms.input[1]))[0, 0]
        distances = self.value(self._source(attention.masses.input[1]))[0, 0]
        onehot = self.value(attention.mass_product.input[1])
        q, v, table = attention.key_product.input[0], attention.attended.input[1], attention.value_product.input[1]
        heads, tokens, head_dim = self._heads(attention), len(onehot), self.value(table).shape[1]
        # As long as a head where that holds all distances: kernels with two results of the same size are kept once in a plan.
        width, entries = _padded(onehot.shape[1], _LINES_ALIGNED), max(head_dim, _padded(distances.shape[1], _ALIGNED))
        length = head_dim + width

        name = attention.key_product.input[1]
        product = made.add("MatMul", [q, self._add(f"{name}.padded", _columns(self.value(name), entries))])
        # The last entry of the table is the zero that stands for "no term".
        index = np.arange(tokens)[:, None] * entries + _columns(lines, width, lines.max())
        query = made.add("Concat", [q, self._gather(made, product, (heads, tokens, entries), index)], axis=-1)
        rows = tokens
        if not joined:
            # Tensors of other sizes than keys: TensorRT then finds a place for them in fewer regions of memory.
            rows = _padded(tokens, _ALIGNED)
            query = made.add("Gather", [query, self._index(np.minimum(np.arange(rows), tokens - 1))], axis=2)

        k = made.add("Transpose", [attention.keys_transposed.input[0]], perm=[0, 2, 1, 3])
        beside = _columns(onehot, width)
        if joined:
            both = self._with_lines(made, made.add("Concat", [k, v], axis=-1), beside, head_dim, (head_dim, head_dim))
            keys, values = self._part(made, both, 0, length), self._part(made, both, head_dim, head_dim + length)
        else:
            keys, values = (self._with_lines(made, each, beside, head_dim, (head_dim, 0)) for each in (k, v))
        made.add("MatMul", [query, made.add("Transpose", [keys], perm=[0, 1, 3, 2])], attention.weights.output[0])

        attended = made.add("MatMul", [attention.softmax.output[0], values])
        first, start = (0, width) if joined else (head_dim, 0)
        index = np.arange(tokens)[:, None] * length + first + _columns(distances, entries, onehot.shape[1] - 1)
        masses = self._gather(made, attended, (heads, rows, length), index)
        name = f"{table}.padded"
        product = made.add("MatMul", [masses, self._add(name, _columns(self.value(table).T, entries).T)])
        box = [self._index(np.array(each)) for each in ((0, start), (tokens, start + head_dim), (2, 3))]
        part = made.add("Slice", [attended, *box], name=VALUES)
        made.add("Add", [part, product], attention.total.output[0])
        return made.nodes

    def _heads(self, attention: _Attention) -> int:
        """From the shape that the one-hot lines are expanded to, ``(batch, heads, 1, 1)``."""
        shape = self.producers[self.producers[attention.keys.input[1]].input[1]]
        return int(self.value(shape.input[1])[0])

    def _source(self, expanded: str) -> str:
        return str(self.producers[expanded].input[0])

    def _with_lines(self, made: _Nodes, x: str, onehot: NDArray[Any], head_dim: int, parts: tuple[int, int]) -> str:
        """One-hot lines ``(N, width)`` after the first part of the last axis of x, or between its two, for every image and head."""
        before, after = parts
        width = onehot.shape[1]
        columns = np.concatenate([np.arange(before), np.zeros(width), head_dim + np.arange(after)])
        kept = np.concatenate([np.ones(before), np.zeros(width), np.ones(after)])
        lines = np.pad(onehot, ((0, 0), (before, after)))
        name = f"{len(onehot)}.{before}.{width}.{after}"
        spread = made.add("Gather", [x, self._index(columns)], axis=-1)
        masked = made.add("Mul", [spread, self._add(f"kept.{name}", kept[None, None, None])])
        return made.add("Add", [masked, self._add(f"onehot.{name}", lines[None, None])])

    def _part(self, made: _Nodes, x: str, start: int, end: int) -> str:
        """Columns of the last axis."""
        return made.add("Slice", [x, *(self._index(np.array([each])) for each in (start, end, 3))])

    def _gather(self, made: _Nodes, x: str, shape: tuple[int, int, int], index: NDArray[Any]) -> str:
        """Entries of x, ``(batch, *shape)``, by one flat index into each head: no batch, nothing is expanded."""
        heads, rows, columns = shape
        flat = made.add("Reshape", [x, self._index(np.array([-1, heads, rows * columns]))])
        return made.add("Gather", [flat, self._index(index)], axis=2)

    def _index(self, values: NDArray[Any]) -> str:
        """An integer constant, added once for all that are the same."""
        import hashlib

        values = values.astype(np.int64)
        digest = hashlib.sha256(values.tobytes()).hexdigest()[:8]
        return self._add(f"index.{'x'.join(map(str, values.shape))}.{digest}", values)

    def _add(self, name: str, values: NDArray[Any]) -> str:
        """A constant, added once."""
        import onnx

        if name not in self.constants:
            kind = onnx.TensorProto.INT64 if values.dtype.kind == "i" else onnx.TensorProto.FLOAT
            entry = tensor(name, values, kind)
            self.proto.graph.initializer.append(entry)
            self.constants[name] = entry
        return name


def _padded(count: int, to: int) -> int:
    return -(-count // to) * to


def _columns(values: NDArray[Any], count: int, fill: Any = 0) -> NDArray[Any]:
    """Columns added up to ``count``."""
    return np.pad(values, ((0, 0), (0, count - values.shape[1])), constant_values=fill)


def _live(nodes: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
    """The nodes that an output depends on."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    return kept[::-1]


def _sorted(nodes: Sequence[Any]) -> list[Any]:
    """Nodes in an order that can be run, as near as can be to the one given."""
    made = {name for node in nodes for name in node.output}
    waiting, ready, done = list(nodes), set[str](), list[Any]()
    while waiting:
        later = []
        for node in waiting:
            if all(name not in made or name in ready for name in node.input):
                done.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise AssertionError("the rewritten graph has a cycle")
        waiting = later
    return done
