"""The weights of a supernet's layers for evaluation, divided into segments of heads.

The biases of k are left out, because softmax ignores them. The biases of v and the cls entry of the value tables pass through
attention unchanged, so they are a constant of the output. The weights of q include the scale of the logits for a softmax to the
base 2.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from growtas.nn.fused.common import leading
from growtas.nn.relative import GridIndex, grid_index, unroll_tables
from growtas.nn.supernet import Supernet


@dataclass(frozen=True)
class RelativePosition:
    """The relative position of a layer.

    Attributes:
        key: a matrix for each position of a query; the query times this matrix gives the terms of the grid lines,
            ``(N, head_dim, L)``.
        value: a matrix for each position of a query; the attention on grid lines times this matrix gives the relative value,
            ``(N, L, head_dim)``.
        cls_value: constant of the values, ``(head_dim,)``.
    """

    key: Tensor
    value: Tensor
    cls_value: Tensor


@dataclass(frozen=True)
class HeadSegment:
    """The weights of a segment of heads for :class:`growtas.nn.evaluation.attention.SegmentAttention`.

    Attributes:
        weight: weights of q, k and v, ``(3 * heads * head_dim, embed_dim)``; those of q include the scale of the logits.
        bias: biases of q, k and v, ``(3 * heads * head_dim,)``; those of k and v are zero.
        projection: weights of the projection, ``(heads * head_dim, embed_dim)``.
        constant: vector that the segment adds to every token, ``(embed_dim,)``.
    """

    weight: Tensor
    bias: Tensor
    projection: Tensor
    constant: Tensor


class EvaluationWeights:
    """The segments and tables of a supernet, each computed once. The supernet's weights must not change."""

    def __init__(self, supernet: Supernet) -> None:
        self._supernet, self._space = supernet, supernet.space
        self.tables, self.segment = functools.cache(self._cut_tables), functools.cache(self._cut_segment)

    @property
    def grid(self) -> GridIndex:
        """The grid of the space's patches."""
        assert self._space.max_relative_position is not None
        return grid_index(self._space.grid_size, self._space.grid_size, self._space.max_relative_position, "cpu")

    def _cut_tables(self, index: int) -> RelativePosition:
        """Returns the relative position of block ``index``."""
        grid, attn = self.grid, self._supernet.block(index).attn
        key, value = attn.relative_key, attn.relative_value
        key_table, _ = unroll_tables(key.vertical, key.horizontal, grid)
        value_table, cls_value = unroll_tables(value.vertical, value.horizontal, grid)
        return RelativePosition(key_table[grid.lines].transpose(1, 2).contiguous(), value_table[grid.lines], cls_value)

    def _cut_segment(self, index: int, dim: int, start: int, stop: int) -> HeadSegment:
        """Returns heads ``start`` to ``stop`` of block ``index`` at width ``dim``."""
        attn, head_dim = self._supernet.block(index).attn, self._space.head_dim
        width = (stop - start) * head_dim
        # The factor log2(e) is for a softmax to the base 2.
        scale = math.log2(math.e) * head_dim**-0.5
        rows = leading(attn.qkv.weight, attn.qkv.out_features, dim)[3 * start * head_dim : 3 * stop * head_dim]
        weight = rows.view(width, 3, dim).transpose(0, 1).reshape(3 * width, dim)
        weight[:width] *= scale
        bias = torch.zeros_like(weight[:, 0])
        torch.mul(attn.qkv.bias[start * head_dim : stop * head_dim], scale, out=bias[:width])
        projection = leading(attn.proj.weight, dim)[:, start * head_dim : stop * head_dim].t()
        # The biases of v are at different entries for every number of heads, so the constant is a difference of two sums.
        constant = self._constant(index, dim, stop) - (self._constant(index, dim, start) if start else 0)
        return HeadSegment(weight, bias, projection, constant)

    def _constant(self, index: int, dim: int, heads: int) -> Tensor:
        """Returns the vector that the first ``heads`` heads add to every token.

        It is the projection of v's biases and of the cls entry of the value tables, plus the projection's bias.
        """
        attn, width = self._supernet.block(index).attn, heads * self._space.head_dim
        values = attn.qkv.bias[2 * width : 3 * width] + self.tables(index).cls_value.repeat(heads)
        return torch.addmv(attn.proj.bias[:dim], leading(attn.proj.weight, dim, width), values)
