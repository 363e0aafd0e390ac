"""Attention of a segment of heads for evaluation on a CPU: with the C kernels if they are installed, else with PyTorch.

Without gradients the PyTorch version needs less work than :mod:`growtas.nn.fused.attention`:

* If no logit is large, it uses ``exp2`` without subtracting a maximum, and divides at the end. The sum of the weights comes from a
  column of ones in the values.
* The position of a query is known. So the terms of its row and column are a matrix product with the table of this position, and so
  are the relative values.

The kernels (:mod:`growtas.nn.evaluation.kernels`) compute the same for one head of an image at a time, without the copies.
"""

from __future__ import annotations

import functools
import threading

import torch
from torch import Tensor

from growtas.nn.evaluation import kernels
from growtas.nn.evaluation.weights import EvaluationWeights, HeadSegment
from growtas.nn.fused.attention import batch_parts
from growtas.nn.relative import GridIndex

# Sums of exp2 of larger numbers over a row could exceed the range of float32.
_LARGE = 100.0


class _Scratch:
    """Scratch memory of one thread for some images and heads; "wide" as in :mod:`growtas.nn.fused.attention`."""

    def __init__(self, images: int, heads: int, head_dim: int, grid: GridIndex, dtype: torch.dtype) -> None:
        tokens, lines = grid.onehot.shape
        groups, wide = images * heads, head_dim + lines
        self.qkv = torch.empty(images * tokens, 3 * heads * head_dim, dtype=dtype)
        self.query, self.key, self.value, self.attended = (torch.empty(groups, tokens, wide, dtype=dtype) for _ in range(4))
        self.weights = torch.empty(groups, tokens, tokens, dtype=dtype)
        for tensor in (self.key, self.value):
            tensor[..., head_dim:] = grid.onehot
        # The last line is padding without keys. Ones there give the sum of the weights, and the tables are zero there.
        self.value[..., -1] = 1


class SegmentAttention:
    """Computes the input of the projection for segments of heads. Threads may share it."""

    def __init__(self, weights: EvaluationWeights, head_dim: int) -> None:
        self._weights, self._head_dim = weights, head_dim
        self._positions = functools.cache(self._padded_tables)
        self._local = threading.local()

    def __call__(self, normed: Tensor, index: int, heads: int, segment: HeadSegment) -> Tensor:
        """Computes the attention of a segment of heads without the biases of v.

        Args:
            normed: normalised tokens, ``(batch, N, embed_dim)``.
            index: index of the block.
            heads: number of heads in the segment.
            segment: weights of the segment.

        Returns:
            ``(batch * N, heads * head_dim)``.
        """
        if not kernels.usable(normed.dtype, self._head_dim):
            return self._plain(normed, index, heads, segment)
        qkv = torch.mm(normed.view(-1, normed.shape[2]), segment.weight.t())
        return kernels.attend(qkv, segment.bias[: heads * self._head_dim], self._positions(index), len(normed))

    def _padded_tables(self, index: int) -> kernels.PositionTables:
        tables = self._weights.tables(index)
        return kernels.PositionTables.of(tables.key, tables.value, self._weights.grid)

    def _plain(self, normed: Tensor, index: int, heads: int, segment: HeadSegment) -> Tensor:
        batch, tokens, dim = normed.shape
        tables, head_dim = self._weights.tables(index), self._head_dim
        out = torch.empty(batch, tokens, heads, head_dim, dtype=normed.dtype)
        slices = batch_parts(batch, heads, tokens)
        scratch = self._scratch(slices[0].stop if slices else 0, heads, normed.dtype)
        for part in slices:
            images = part.stop - part.start
            groups, rows_in = images * heads, normed[part].view(-1, dim)
            query, key, value, attended = (
                buffer[:groups] for buffer in (scratch.query, scratch.key, scratch.value, scratch.attended)
            )
            qkv = torch.addmm(segment.bias, rows_in, segment.weight.t(), out=scratch.qkv[: images * tokens])
            split = qkv.view(images, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
            for wide, content in zip((query, key, value), split, strict=True):
                wide.view(images, heads, tokens, -1)[..., :head_dim].copy_(content)
            by_position = query.transpose(0, 1)
            by_position[..., head_dim:].copy_(torch.bmm(by_position[..., :head_dim], tables.key))
            weights = torch.bmm(query, key.transpose(1, 2), out=scratch.weights[:groups])
            _exponentials(weights)
            torch.bmm(weights, value, out=attended)
            by_position = attended.transpose(0, 1)
            content = torch.baddbmm(by_position[..., :head_dim], by_position[..., head_dim:], tables.value)
            sums = attended[..., -1:].view(images, heads, tokens, 1).transpose(1, 2)
            torch.div(content.view(tokens, images, heads, head_dim).transpose(0, 1), sums, out=out[part])
        return out.view(batch * tokens, heads * head_dim)

    def _scratch(self, images: int, heads: int, dtype: torch.dtype) -> _Scratch:
        # The memory is reused by later calls, because its constant columns stay unchanged.
        buffers: dict[tuple[int, int, torch.dtype], _Scratch] = self._local.__dict__.setdefault("buffers", {})
        key = images, heads, dtype
        if key not in buffers:
            buffers[key] = _Scratch(images, heads, self._head_dim, self._weights.grid, dtype)
        return buffers[key]


def _exponentials(logits: Tensor) -> None:
    """Computes ``exp2`` in place. If a logit is large, the maximum of each row is subtracted first; the division cancels it."""
    least, largest = torch.aminmax(logits)
    if not (float(largest) < _LARGE and float(least) > -_LARGE):
        logits -= logits.amax(-1, keepdim=True)
    torch.exp2(logits, out=logits)
