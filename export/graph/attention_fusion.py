"""Rewrites attention with a relative position as one MatMul, Softmax, MatMul, which TensorRT compiles to one kernel.

The fp32 graph (:mod:`growtas.export.graph.inference_vit`) computes the attention on the grid's lines by a separate product, and
gathers with expanded index tensors. That is fastest in ONNX Runtime, but has two drawbacks in TensorRT. In half precision TensorRT
fuses an attention only if its Softmax has one reader and the length of its vectors is a multiple of 8 (TensorRT-RTX 1.7 fuses no
attention in fp32). And it keeps expanded tensors in memory for the whole network. Therefore, here

* the one-hot lines are columns beside k and beside v, padded to the same length, and so are the terms beside the queries;
* nothing is expanded to the batch: the lines' columns are copies of columns of k and v, times zero, plus a constant;
* gathers are flat: one constant index per position and line, without the batch.

The results are equal up to rounding. :mod:`growtas.export.tensorrt.optimize` makes the other changes for plans.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from growtas.export.graph.edit import (
    add_constant,
    forget_types,
    insert_before,
    numbers,
    operand,
    producer,
    remove_unused,
    replace_tensor,
)

# Last part of the names of the nodes that slice v's columns from the output of attention.
VALUES = "attended_values"
# The kernels need vectors whose length is a multiple of this number.
_ALIGNED = 8
_LINES_ALIGNED = 32


def fuse_attention(model: ir.Model, *, joined: bool = False) -> int:
    """Rewrites every attention with a relative position in the fusable form, in place.

    Args:
        model: a graph of growtas' exporter with inferred types. A graph without such an attention in fp32 is not changed.
        joined: whether to put k, the lines and v into one tensor. This is for fp32, where attention is not a single kernel: the
            tensor of q, k and v can then be freed before the attention weights are computed.

    Returns:
        The number of rewritten attentions.
    """
    attentions = [attention for node in model.graph if (attention := _match(node)) is not None]
    for attention in attentions:
        _Rewriting(model.graph, attention).run(joined)
    if attentions:
        remove_unused(model)
        forget_types(model)
    return len(attentions)


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """The nodes of one attention, named after their outputs."""

    terms: ir.Node
    keys: ir.Node
    logits: ir.Node
    softmax: ir.Node
    mass_product: ir.Node
    masses: ir.Node
    attended: ir.Node
    value_product: ir.Node
    total: ir.Node


def _match(softmax: ir.Node) -> _Attention | None:
    """Returns the attention around a Softmax; None for one without a relative position."""
    if softmax.op_type != "Softmax":
        return None
    readers = softmax.outputs[0].consumers()
    products = [node for node in readers if node.op_type == "MatMul" and operand(node, 1).is_initializer()]
    attended = [node for node in readers if node.op_type == "MatMul" and node not in products[:1]]
    logits = operand(softmax).producer()
    if not products or not attended or logits is None or len(readers) != 2:
        return None
    if operand(products[0], 1).dtype != ir.DataType.FLOAT:
        return None
    query, keys = (operand(logits, index).producer() for index in (0, 1))
    (masses,) = products[0].outputs[0].consumers()
    if query is None or keys is None or {query.op_type, keys.op_type} != {"Concat"} or masses.op_type != "GatherElements":
        return None
    (value_product,) = masses.outputs[0].consumers()
    (total,) = value_product.outputs[0].consumers()
    return _Attention(
        terms=producer(operand(query, 1)),
        keys=keys,
        logits=logits,
        softmax=softmax,
        mass_product=products[0],
        masses=masses,
        attended=attended[0],
        value_product=value_product,
        total=total,
    )


class _Rewriting:
    """Inserts the nodes from q, k and v, each ``(batch, heads, N, head_dim)``, to the sum of the output's two parts."""

    def __init__(self, graph: ir.Graph, attention: _Attention) -> None:
        self.graph, self.attention, self.prefix = graph, attention, attention.logits.name
        # Nodes that compute the attention weights are inserted before the Softmax, the others after it.
        self.place, self.count = attention.softmax, 0

    def run(self, joined: bool) -> None:
        attention = self.attention
        lines = numbers(operand(producer(operand(attention.terms, 1))))[0, 0]
        distances = numbers(operand(producer(operand(attention.masses, 1))))[0, 0]
        onehot = numbers(operand(attention.mass_product, 1))
        key_product, table = producer(operand(attention.terms)), operand(attention.value_product, 1)
        q, v = operand(key_product), operand(attention.attended, 1)
        # From the shape that the one-hot lines are expanded to, (batch, heads, 1, 1).
        heads = int(numbers(operand(producer(operand(producer(operand(attention.keys, 1)), 1)), 1))[0])
        tokens, head_dim = len(onehot), numbers(table).shape[1]
        # At least as long as a head: if two kernels have outputs of the same size, a plan stores the kernel only once.
        width, entries = _padded(onehot.shape[1], _LINES_ALIGNED), max(head_dim, _padded(distances.shape[1], _ALIGNED))
        length = head_dim + width

        keys_table = operand(key_product, 1)
        product = self._add("MatMul", [q, self._constant(f"{keys_table.name}.padded", _columns(numbers(keys_table), entries))])
        # The table's last entry is a zero, for pairs without a term.
        index = np.arange(tokens)[:, None] * entries + _columns(lines, width, lines.max())
        query = self._add("Concat", [q, self._gather(product, (heads, tokens, entries), index)], axis=-1)
        rows = tokens
        if not joined:
            # The queries differ in size from the keys: TensorRT then needs fewer regions of memory.
            rows = _padded(tokens, _ALIGNED)
            query = self._add("Gather", [query, self._index(np.minimum(np.arange(rows), tokens - 1))], axis=2)

        k = self._add("Transpose", [operand(producer(operand(attention.keys)))], perm=[0, 2, 1, 3])
        beside = _columns(onehot, width)
        if joined:
            both = self._with_lines(self._add("Concat", [k, v], axis=-1), beside, head_dim, (head_dim, head_dim))
            keys, values = self._part(both, 0, length), self._part(both, head_dim, head_dim + length)
        else:
            keys, values = (self._with_lines(x, beside, head_dim, (head_dim, 0)) for x in (k, v))
        keys_transposed = self._add("Transpose", [keys], perm=[0, 1, 3, 2])
        logits = self._add("MatMul", [query, keys_transposed], output=operand(attention.softmax).name)
        attention.softmax.replace_input_with(0, logits)

        self.place = attention.total
        attended = self._add("MatMul", [attention.softmax.outputs[0], values])
        first, start = (0, width) if joined else (head_dim, 0)
        index = np.arange(tokens)[:, None] * length + first + _columns(distances, entries, onehot.shape[1] - 1)
        masses = self._gather(attended, (heads, rows, length), index)
        padded_table = self._constant(f"{table.name}.padded", _columns(numbers(table).T, entries).T)
        product = self._add("MatMul", [masses, padded_table])
        box = [self._index(np.array(corner)) for corner in ((0, start), (tokens, start + head_dim), (2, 3))]
        part = self._add("Slice", [attended, *box], name=VALUES)
        replace_tensor(attention.total.outputs[0], self._add("Add", [part, product]))

    def _add(
        self, operator: str, inputs: Sequence[ir.Value], *, output: str | None = None, name: str | None = None, **attributes: Any
    ) -> ir.Value:
        """Inserts a node that is named after the attention and its operator."""
        name = f"{self.prefix}.{name or f'{operator}_{self.count}'}"
        self.count += 1
        return insert_before(self.place, operator, inputs, output or name, name, **attributes)

    def _with_lines(self, x: ir.Value, onehot: NDArray[Any], head_dim: int, parts: tuple[int, int]) -> ir.Value:
        """Inserts the one-hot lines ``(N, width)`` between the two parts of x's last axis (the second may be empty)."""
        before, after = parts
        width = onehot.shape[1]
        columns = np.concatenate([np.arange(before), np.zeros(width), head_dim + np.arange(after)])
        mask = np.concatenate([np.ones(before), np.zeros(width), np.ones(after)])
        lines = np.pad(onehot, ((0, 0), (before, after)))
        name = f"{len(onehot)}.{before}.{width}.{after}"
        spread = self._add("Gather", [x, self._index(columns)], axis=-1)
        masked = self._add("Mul", [spread, self._constant(f"kept.{name}", mask[None, None, None])])
        return self._add("Add", [masked, self._constant(f"onehot.{name}", lines[None, None])])

    def _part(self, x: ir.Value, start: int, end: int) -> ir.Value:
        """Slices columns of the last axis."""
        return self._add("Slice", [x, *(self._index(np.array([place])) for place in (start, end, 3))])

    def _gather(self, x: ir.Value, shape: tuple[int, int, int], index: NDArray[Any]) -> ir.Value:
        """Gathers entries of x, ``(batch, *shape)``, by one flat index per head, which has no batch axis to expand."""
        heads, rows, columns = shape
        flat = self._add("Reshape", [x, self._index(np.array([-1, heads, rows * columns]))])
        return self._add("Gather", [flat, self._index(index)], axis=2)

    def _index(self, values: NDArray[Any]) -> ir.Value:
        """An integer constant; equal constants are added only once."""
        values = values.astype(np.int64)
        digest = hashlib.sha256(values.tobytes()).hexdigest()[:8]
        return add_constant(self.graph, f"index.{'x'.join(map(str, values.shape))}.{digest}", values, ir.DataType.INT64)

    def _constant(self, name: str, values: NDArray[Any]) -> ir.Value:
        return add_constant(self.graph, name, values, ir.DataType.FLOAT)


def _padded(count: int, to: int) -> int:
    return -(-count // to) * to


def _columns(values: NDArray[Any], count: int, fill: Any = 0) -> NDArray[Any]:
    """Pads the columns up to ``count``."""
    return np.pad(values, ((0, 0), (0, count - values.shape[1])), constant_values=fill)
