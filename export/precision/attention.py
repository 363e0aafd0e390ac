"""Attention with a relative position as one MatMul, Softmax, MatMul, the form that TensorRT compiles to one kernel.

The fp32 graph (:mod:`growtas.export.deploy`) takes the attention on the grid's lines by a product of its own, and gathers by
expanded index tensors: that is fastest in ONNX Runtime. For TensorRT it has two faults. In half precision TensorRT fuses an
attention whose Softmax has one reader and whose vectors are as long as a multiple of 8 (in fp32 TensorRT-RTX 1.7 fuses none). And
it keeps expanded index tensors, 8 bytes a number, for the whole network. So here

* the one-hot lines stand beside v as beside k, padded to the same length, and queries' terms likewise;
* gathers are flat: one constant index per position and line, no batch.

The numbers are the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.export.precision.graph import constants, replace_nodes, tensor

# Kernels want vectors of a multiple of this many numbers.
_ALIGNED = 8
_LINES_ALIGNED = 32


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """The nodes of one attention, by what they compute."""

    terms: Any
    key_product: Any
    query: Any
    keys: Any
    keys_transposed: Any
    weights: Any
    mass_product: Any
    masses: Any
    attended: Any
    value_product: Any

    @property
    def replaced(self) -> list[Any]:
        """Those that are written anew."""
        return [
            self.terms,
            self.key_product,
            self.query,
            self.keys,
            self.keys_transposed,
            self.mass_product,
            self.masses,
            self.attended,
            self.value_product,
        ]


def fuse_attention(proto: Any) -> int:
    """Write every attention with a relative position in the fusable form, in place.

    Args:
        proto: a graph of growtas' exporter; one that has no such attention stays as it is.

    Returns:
        How many were rewritten.
    """
    graph = _Graph(proto)
    found = [attention for node in proto.graph.node if (attention := graph.match(node)) is not None]
    replaced = {id(node): attention for attention in found for node in attention.replaced}
    nodes: list[Any] = []
    for node in proto.graph.node:
        attention = replaced.get(id(node))
        nodes += [node] if attention is None else graph.rewritten(node, attention)
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
        self._expanded: dict[tuple[str, str], str] = {}

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
        query, keys = (self.producers.get(name) for name in weights.input)
        (masses,) = self.readers[mass_product.output[0]]
        if query is None or keys is None or {query.op_type, keys.op_type} != {"Concat"} or masses.op_type != "GatherElements":
            return None
        terms = self.producers[query.input[1]]
        (value_product,) = self.readers[masses.output[0]]
        return _Attention(
            terms=terms,
            key_product=self.producers[terms.input[0]],
            query=query,
            keys=keys,
            keys_transposed=self.producers[keys.input[0]],
            weights=weights,
            mass_product=mass_product,
            masses=masses,
            attended=attended,
            value_product=value_product,
        )

    def rewritten(self, node: Any, attention: _Attention) -> list[Any]:
        """What stands in for a node of an attention."""
        import onnx

        make = onnx.helper.make_node
        lines = self.value(self._source(attention.terms.input[1]))[0, 0]
        distances = self.value(self._source(attention.masses.input[1]))[0, 0]
        onehot = self.value(attention.mass_product.input[1])
        width, entries = _padded(onehot.shape[1], _LINES_ALIGNED), _padded(distances.shape[1], _ALIGNED)
        heads, head_dim = self._heads(attention), self.value(attention.value_product.input[1]).shape[1]
        out = node.output[0]
        if node is attention.keys_transposed:
            # To heads, (batch, heads, N, head_dim), like q and v.
            return [make("Transpose", list(node.input), [_rows(node)], name=node.name, perm=[0, 2, 1, 3])]
        if node is attention.key_product:
            table = _columns(self.value(node.input[1]), entries)
            return [make("MatMul", [node.input[0], self._add(f"{node.input[1]}.padded", table)], [out], name=node.name)]
        if node is attention.terms:
            # The last entry of the table is the zero that stands for "no term".
            return self._gather(node, "lines", heads, entries, _columns(lines, width, lines.max()))
        if node is attention.query:
            return [make("Concat", list(node.input), [out], name=node.name, axis=-1)]
        if node is attention.keys:
            beside, expand = self._beside(node.input[1], _columns(onehot, width), attention.mass_product.input[1])
            whole = f"{out}.rows"
            concat = make("Concat", [_rows(attention.keys_transposed), beside], [whole], name=node.name, axis=-1)
            return [*expand, concat, make("Transpose", [whole], [out], name=f"{node.name}.transposed", perm=[0, 1, 3, 2])]
        if node is attention.attended:
            beside, expand = self._beside(attention.keys.input[1], _columns(onehot, width), attention.mass_product.input[1])
            values, both = f"{out}.values", f"{out}.both"
            sizes = self._add(f"heads.{head_dim}.{width}.sizes", np.array([head_dim, width], np.int64))
            mass = attention.mass_product.output[0]
            return [
                *expand,
                make("Concat", [node.input[1], beside], [values], name=f"{node.name}.values", axis=-1),
                make("MatMul", [node.input[0], values], [both], name=node.name),
                make("Split", [both, sizes], [out, mass], name=f"{node.name}.split", axis=-1),
            ]
        if node is attention.masses:
            return self._gather(node, "distances", heads, width, _columns(distances, entries, onehot.shape[1] - 1))
        if node is attention.value_product:
            table = _columns(self.value(node.input[1]).T, entries).T
            return [make("MatMul", [node.input[0], self._add(f"{node.input[1]}.padded", table)], [out], name=node.name)]
        return []

    def _heads(self, attention: _Attention) -> int:
        """From the shape that the one-hot lines are expanded to, ``(batch, heads, 1, 1)``."""
        shape = self.producers[self.producers[attention.keys.input[1]].input[1]]
        return int(self.value(shape.input[1])[0])

    def _source(self, expanded: str) -> str:
        return str(self.producers[expanded].input[0])

    def _beside(self, old: str, onehot: NDArray[Any], name: str) -> tuple[str, list[Any]]:
        """The one-hot lines of every image and head, and the node that makes them, where they are not there yet."""
        import onnx

        shape = self.producers[old].input[1]
        key = (str(shape), str(onehot.shape))
        if key in self._expanded:
            return self._expanded[key], []
        made = f"{old}.lines"
        self._expanded[key] = made
        constant = self._add(f"{name}.padded", onehot[None, None])
        return made, [onnx.helper.make_node("Expand", [constant, shape], [made], name=made)]

    def _gather(self, node: Any, role: str, heads: int, columns: int, index: NDArray[Any]) -> list[Any]:
        """Entry ``index[i, j]`` of row i, for every image and head: by one constant index into all rows."""
        import onnx

        tokens = len(index)
        flat = np.arange(tokens)[:, None] * columns + index
        shape = self._add(f"rows.{heads}.{tokens}.{columns}", np.array([-1, heads, tokens * columns], np.int64))
        positions = self._add(f"{role}.{tokens}.{columns}.{index.shape[1]}", flat.astype(np.int64))
        rows = f"{node.output[0]}.rows"
        return [
            onnx.helper.make_node("Reshape", [node.input[0], shape], [rows], name=rows),
            onnx.helper.make_node("Gather", [rows, positions], list(node.output), name=node.name, axis=2),
        ]

    def _add(self, name: str, values: NDArray[Any]) -> str:
        """A constant, added once."""
        import onnx

        if name not in self.constants:
            kind = onnx.TensorProto.INT64 if values.dtype.kind == "i" else onnx.TensorProto.FLOAT
            entry = tensor(name, values, kind)
            self.proto.graph.initializer.append(entry)
            self.constants[name] = entry
        return name


def _rows(node: Any) -> str:
    return f"{node.output[0]}.rows"


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
