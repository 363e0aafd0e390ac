"""A supernet's layers for evaluation, each for all subnets at once that give it the same tokens.

Subnets that differ only in a layer's heads, or hidden channels, share more than the tokens they begin with. The smaller one's
heads are the leading heads of the larger one, and compute the same: in AutoFormer's layout q's weights and biases are the same
entries, k's biases differ but add the same number to a query's logits with all keys, which softmax ignores, and v's biases only
add a constant to the output, since attention weights sum up to one. Likewise the hidden channels. So both halves of a block are
sums over *segments*, from one choice to the next larger one, and a subnet's output is a partial sum.

Every segment is computed by itself, whoever asks for it: a subnet's numbers do not depend on its siblings. They are those of
:class:`growtas.nn.supernet.Supernet` up to rounding.

Without gradients the attention can do with less than :mod:`growtas.nn.packed`:

* ``exp2`` without a maximum to subtract, where no logit is large, and a division at the end: the sum of the weights comes out of
  the values' product, which has a column of ones for it.
* A query's position is known, so the terms of its row and column are a matrix product with a table of its own.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from growtas.nn.fused import fusable, leading, normalise, parts
from growtas.nn.packed import PART_BYTES
from growtas.nn.relative import GridIndex, grid_index, unroll_tables
from growtas.nn.supernet import Supernet
from growtas.nn.vit import Block

# exp2 of larger numbers, summed up over a row, could leave float32's range.
_LARGE = 100.0


@dataclass(frozen=True)
class _Tables:
    """A layer's relative position.

    Attributes:
        terms: ``(N, head_dim, L)``: a query's content times the matrix of its position gives the terms of the grid's lines.
        value: ``(D, head_dim)``: the unrolled value table, see :func:`growtas.nn.relative.unroll_tables`.
        cls_value: ``(head_dim,)``, a constant of the values.
    """

    terms: Tensor
    value: Tensor
    cls_value: Tensor


class _Scratch:
    """Memory of one thread for some images and heads; "wide" as in :mod:`growtas.nn.packed`."""

    def __init__(self, images: int, heads: int, head_dim: int, grid: GridIndex, dtype: torch.dtype) -> None:
        tokens, lines = grid.onehot.shape
        groups, wide = images * heads, head_dim + lines
        self.qkv = torch.empty(images * tokens, 3 * heads * head_dim, dtype=dtype)
        self.query, self.key, self.value, self.attended = (torch.empty(groups, tokens, wide, dtype=dtype) for _ in range(4))
        self.weights = torch.empty(groups, tokens, tokens, dtype=dtype)
        self.placed = torch.empty(groups, tokens, grid.distances.shape[1], dtype=dtype)
        for tensor in (self.key, self.value):
            tensor[..., head_dim:] = grid.onehot
        # No key lies on the last, padded line: its attended value becomes the sum of the weights.
        self.value[..., -1] = 1


class SiblingLayers:
    """The layers of a supernet whose weights don't change any more; for all threads.

    Args:
        supernet: in eval mode.
    """

    def __init__(self, supernet: Supernet) -> None:
        self._supernet, self._space = supernet, supernet.space
        self._tables: dict[int, _Tables] = {}
        self._local = threading.local()

    def attention(self, x: Tensor, index: int, num_heads: Sequence[int]) -> list[Tensor]:
        """:meth:`growtas.nn.supernet.Supernet.attention_layer` of the same tokens for several numbers of heads.

        Args:
            x: ``(batch, N, embed_dim)``.
            index: the block.
            num_heads: any; only the space's own choices share work.

        Returns:
            A tensor like ``x`` each, in the order of ``num_heads``.
        """
        block, choices = self._block(index), self._space.num_heads
        if not block.attn.fusable(x, block.norm1) or not set(num_heads) <= set(choices):
            return [self._supernet.attention_layer(x, index, heads) for heads in num_heads]
        batch, tokens, dim = x.shape
        attn, head_dim, rows = block.attn, self._space.head_dim, x.reshape(-1, dim)
        normed = normalise(rows, block.norm1.weight, block.norm1.bias)[0]
        projection, bias = leading(attn.proj.weight, dim), attn.proj.bias[:dim]
        cls_value = self._of_layer(index, x.dtype).cls_value
        found: dict[int, Tensor] = {}
        partial = torch.empty_like(rows)
        largest = max(num_heads)
        for start, stop in _segments(choices, largest):
            context = self._attend(normed.view(batch, tokens, dim), index, start, stop)
            into = projection[:, start * head_dim : stop * head_dim].t()
            torch.addmm(rows if not start else partial, context, into, out=partial)
            if stop in num_heads:
                width = stop * head_dim
                values = attn.qkv.bias[2 * width : 3 * width] + cls_value.repeat(stop)
                constant = torch.addmv(bias, projection[:, :width], values)
                # The last one needs no copy.
                found[stop] = torch.add(partial, constant, out=partial if stop == largest else None).view_as(x)
        return [found[heads] for heads in num_heads]

    def mlp(self, x: Tensor, index: int, hidden_dims: Sequence[int]) -> list[Tensor]:
        """:meth:`growtas.nn.supernet.Supernet.mlp_layer` of the same tokens for several numbers of hidden channels.

        Args:
            x: ``(batch, N, embed_dim)``.
            index: the block.
            hidden_dims: any; only those of the space's own choices share work.

        Returns:
            A tensor like ``x`` each, in the order of ``hidden_dims``.
        """
        block, dim = self._block(index), x.shape[-1]
        choices = [int(dim * ratio) for ratio in self._space.mlp_ratio]
        layers = (block.norm2, block.fc1, block.fc2)
        if not fusable(x, layers) or not set(hidden_dims) <= set(choices):
            return [self._supernet.mlp_layer(x, index, hidden) for hidden in hidden_dims]
        rows = x.reshape(-1, dim)
        normed = normalise(rows, block.norm2.weight, block.norm2.bias)[0]
        first, second = leading(block.fc1.weight, block.fc1.out_features, dim), leading(block.fc2.weight, dim)
        found: dict[int, Tensor] = {}
        partial = rows + block.fc2.bias[:dim]
        for start, stop in _segments(choices, max(hidden_dims)):
            hidden = torch.addmm(block.fc1.bias[start:stop], normed, first[start:stop].t())
            torch.ops.aten.gelu.out(hidden, out=hidden)
            # What was given out stays as it is.
            partial = torch.addmm(partial, hidden, second[:, start:stop].t(), out=None if start in found else partial)
            if stop in hidden_dims:
                found[stop] = partial
        found = {stop: tensor.view_as(x) for stop, tensor in found.items()}
        return [found[hidden] for hidden in hidden_dims]

    def _attend(self, normed: Tensor, index: int, start: int, stop: int) -> Tensor:
        """What heads ``start`` to ``stop`` hand to the projection, v's biases left out: ``(batch * N, heads * head_dim)``."""
        batch, tokens, dim = normed.shape
        attn, tables, heads = self._block(index).attn, self._of_layer(index, normed.dtype), stop - start
        head_dim, width = self._space.head_dim, heads * self._space.head_dim
        # Logits in powers of two.
        scale = math.log2(math.e) * head_dim**-0.5
        rows = leading(attn.qkv.weight, attn.qkv.out_features, dim)[3 * start * head_dim : 3 * stop * head_dim]
        weight = rows.view(width, 3, dim).transpose(0, 1).reshape(3 * width, dim)
        weight[:width] *= scale
        bias = torch.zeros_like(weight[:, 0])
        torch.mul(attn.qkv.bias[start * head_dim : stop * head_dim], scale, out=bias[:width])
        out = torch.empty(batch, tokens, heads, head_dim, dtype=normed.dtype)
        slices = parts(batch, max(1, PART_BYTES // (4 * heads * tokens * tokens)))
        scratch = self._scratch(slices[0].stop if slices else 0, heads, normed.dtype)
        for part in slices:
            images = part.stop - part.start
            groups, rows_in = images * heads, normed[part].view(-1, dim)
            query, key, value, attended = (held[:groups] for held in (scratch.query, scratch.key, scratch.value, scratch.attended))
            qkv = torch.addmm(bias, rows_in, weight.t(), out=scratch.qkv[: images * tokens])
            split = qkv.view(images, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
            for wide, own in zip((query, key, value), split, strict=True):
                wide.view(images, heads, tokens, -1)[..., :head_dim].copy_(own)
            by_position = query.transpose(0, 1)
            by_position[..., head_dim:].copy_(torch.bmm(by_position[..., :head_dim], tables.terms))
            weights = torch.bmm(query, key.transpose(1, 2), out=scratch.weights[:groups])
            _exponentials(weights)
            torch.bmm(weights, value, out=attended)
            placed, masses = scratch.placed[:groups], attended[..., head_dim:]
            torch.gather(masses, -1, self._grid.distances.expand(groups, -1, -1), out=placed)
            content = attended.view(groups * tokens, -1)[:, :head_dim].addmm_(placed.view(groups * tokens, -1), tables.value)
            sums = attended[..., -1:].view(images, heads, tokens, 1).transpose(1, 2)
            torch.div(content.view(images, heads, tokens, head_dim).transpose(1, 2), sums, out=out[part])
        return out.view(batch * tokens, width)

    def _block(self, index: int) -> Block:
        block = self._supernet.blocks[index]
        assert isinstance(block, Block)
        return block

    @property
    def _grid(self) -> GridIndex:
        return grid_index(self._space.grid_size, self._space.grid_size, self._space.max_relative_position, "cpu")

    def _of_layer(self, index: int, dtype: torch.dtype) -> _Tables:
        tables = self._tables.get(index)
        if tables is None:
            grid, attn = self._grid, self._block(index).attn
            key, value = attn.relative_key, attn.relative_value
            key_table, _ = unroll_tables(key.vertical, key.horizontal, grid)
            value_table, cls_value = unroll_tables(value.vertical, value.horizontal, grid)
            tables = _Tables(key_table[grid.lines].transpose(1, 2).contiguous(), value_table, cls_value)
            self._tables[index] = tables
        return tables

    def _scratch(self, images: int, heads: int, dtype: torch.dtype) -> _Scratch:
        # The constant columns stay, so the memory of one call serves the next ones.
        held: dict[tuple[int, int, torch.dtype], _Scratch] = self._local.__dict__.setdefault("held", {})
        key = images, heads, dtype
        if key not in held:
            held[key] = _Scratch(images, heads, self._space.head_dim, self._grid, dtype)
        return held[key]


def _segments(choices: Sequence[int], largest: int) -> list[tuple[int, int]]:
    """From one choice to the next, the first from zero, up to ``largest``."""
    return list(itertools.pairwise([0, *(choice for choice in sorted(set(choices)) if choice <= largest)]))


def _exponentials(logits: Tensor) -> None:
    """``exp2`` in place; where a logit is large, each row's largest is subtracted first, which the division undoes."""
    least, largest = torch.aminmax(logits)
    if not (float(largest) < _LARGE and float(least) > -_LARGE):
        logits -= logits.amax(-1, keepdim=True)
    torch.exp2(logits, out=logits)
