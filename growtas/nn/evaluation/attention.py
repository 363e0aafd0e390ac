"""Attention of a segment of heads, for evaluation on a CPU: with the C kernels where they are installed, else with PyTorch.

Without gradients PyTorch's functions can do with less than :mod:`growtas.nn.fused.attention`:

* ``exp2`` without a maximum to subtract, where no logit is large, and a division at the end: the sum of the weights comes out of
  the values' product, which has a column of ones for it.
* A query's position is known, so the terms of its row and column are a matrix product with a table of its own, and so are the
  relative values of the attention on rows and columns.

The kernels (:mod:`growtas.nn.evaluation.kernels`) compute the same, a head of an image at a time, without the copies.
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

# exp2 of larger numbers, summed up over a row, could leave float32's range.
_LARGE = 100.0


class _Scratch:
    """Memory of one thread for some images and heads; "wide" as in :mod:`growtas.nn.fused.attention`."""

    def __init__(self, images: int, heads: int, head_dim: int, grid: GridIndex, dtype: torch.dtype) -> None:
        tokens, lines = grid.onehot.shape
        groups, wide = images * heads, head_dim + lines
        self.qkv = torch.empty(images * tokens, 3 * heads * head_dim, dtype=dtype)
        self.query, self.key, self.value, self.attended = (torch.empty(groups, tokens, wide, dtype=dtype) for _ in range(4))
        self.weights = torch.empty(groups, tokens, tokens, dtype=dtype)
        for tensor in (self.key, self.value):
            tensor[..., head_dim:] = grid.onehot
        # No key lies on the last, padded line: its attended value becomes the sum of the weights. The tables are zero there.
        self.value[..., -1] = 1


class SegmentAttention:
    """Computes what segments of heads hand to the projection; all threads may share it."""

    def __init__(self, weights: EvaluationWeights, head_dim: int) -> None:
        self._weights, self._head_dim = weights, head_dim
        self._positions = functools.cache(self._padded_tables)
        self._local = threading.local()

    def __call__(self, normed: Tensor, index: int, heads: int, segment: HeadSegment) -> Tensor:
        """Attention of a segment of ``heads`` heads of block ``index``, v's biases left out.

        Tokens are ``(batch, N, embed_dim)``, normalised; the result is ``(batch * N, heads * head_dim)``.
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
        # The constant columns stay, so the memory of one call serves the next ones.
        buffers: dict[tuple[int, int, torch.dtype], _Scratch] = self._local.__dict__.setdefault("buffers", {})
        key = images, heads, dtype
        if key not in buffers:
            buffers[key] = _Scratch(images, heads, self._head_dim, self._weights.grid, dtype)
        return buffers[key]


def _exponentials(logits: Tensor) -> None:
    """``exp2`` in place; where a logit is large, each row's largest is subtracted first, which the division undoes."""
    least, largest = torch.aminmax(logits)
    if not (float(largest) < _LARGE and float(least) > -_LARGE):
        logits -= logits.amax(-1, keepdim=True)
    torch.exp2(logits, out=logits)
