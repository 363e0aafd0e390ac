"""The weights of a supernet's layers for evaluation: cut into segments of heads, with what the segments share precomputed.

Biases of k are left out, since softmax ignores them. Those of v, and the cls entry of the value tables, pass through attention
unchanged and are a constant of the output. q's weights include the logits' scale, for powers of two.
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
    """A layer's relative position.

    Attributes:
        key: ``(N, head_dim, L)``: a query's content times the matrix of its position gives the terms of the grid's lines.
        value: ``(N, L, head_dim)``: a query's attention on the lines times the matrix of its position gives the relative value.
        cls_value: ``(head_dim,)``, a constant of the values.
    """

    key: Tensor
    value: Tensor
    cls_value: Tensor


@dataclass(frozen=True)
class HeadSegment:
    """The weights of a segment of heads, as :class:`growtas.nn.evaluation.attention.SegmentAttention` takes them.

    Attributes:
        weight, bias: of q, k and v, ``(3 * heads * head_dim, embed_dim)``; q's with the logits' scale, k's and v's biases zero.
        projection: ``(heads * head_dim, embed_dim)``.
        constant: ``(embed_dim,)``, what the segment adds to every token.
    """

    weight: Tensor
    bias: Tensor
    projection: Tensor
    constant: Tensor


class EvaluationWeights:
    """The segments and tables of a supernet whose weights don't change any more, each computed once."""

    def __init__(self, supernet: Supernet) -> None:
        self._supernet, self._space = supernet, supernet.space
        self.tables, self.segment = functools.cache(self._cut_tables), functools.cache(self._cut_segment)

    @property
    def grid(self) -> GridIndex:
        """The grid of the space's patches."""
        return grid_index(self._space.grid_size, self._space.grid_size, self._space.max_relative_position, "cpu")

    def _cut_tables(self, index: int) -> RelativePosition:
        """The relative position of block ``index``."""
        grid, attn = self.grid, self._supernet.block(index).attn
        key, value = attn.relative_key, attn.relative_value
        key_table, _ = unroll_tables(key.vertical, key.horizontal, grid)
        value_table, cls_value = unroll_tables(value.vertical, value.horizontal, grid)
        return RelativePosition(key_table[grid.lines].transpose(1, 2).contiguous(), value_table[grid.lines], cls_value)

    def _cut_segment(self, index: int, dim: int, start: int, stop: int) -> HeadSegment:
        """Heads ``start`` to ``stop`` of block ``index`` at width ``dim``."""
        attn, head_dim = self._supernet.block(index).attn, self._space.head_dim
        width = (stop - start) * head_dim
        # Logits in powers of two.
        scale = math.log2(math.e) * head_dim**-0.5
        rows = leading(attn.qkv.weight, attn.qkv.out_features, dim)[3 * start * head_dim : 3 * stop * head_dim]
        weight = rows.view(width, 3, dim).transpose(0, 1).reshape(3 * width, dim)
        weight[:width] *= scale
        bias = torch.zeros_like(weight[:, 0])
        torch.mul(attn.qkv.bias[start * head_dim : stop * head_dim], scale, out=bias[:width])
        projection = leading(attn.proj.weight, dim)[:, start * head_dim : stop * head_dim].t()
        # The entries of v's biases are others for every number of heads, those of the segments before included.
        constant = self._constant(index, dim, stop) - (self._constant(index, dim, start) if start else 0)
        return HeadSegment(weight, bias, projection, constant)

    def _constant(self, index: int, dim: int, heads: int) -> Tensor:
        """What the first heads add to every token: the projection of v's biases and of the relative value of cls, and its bias."""
        attn, width = self._supernet.block(index).attn, heads * self._space.head_dim
        values = attn.qkv.bias[2 * width : 3 * width] + self.tables(index).cls_value.repeat(heads)
        return torch.addmv(attn.proj.bias[:dim], leading(attn.proj.weight, dim, width), values)
