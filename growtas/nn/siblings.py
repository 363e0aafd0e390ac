"""A supernet's layers for evaluation, each for all subnets at once that give it the same tokens.

Subnets that differ only in a layer's heads, or hidden channels, share more than the tokens they begin with. The smaller one's
heads are the leading heads of the larger one, and compute the same: in AutoFormer's layout q's weights and biases are the same
entries, k's biases differ but add the same number to a query's logits with all keys, which softmax ignores, and v's biases only
add a constant to the output, since attention weights sum up to one. Likewise the hidden channels. So both halves of a block are
sums over *segments*, from one choice to the next larger one, and a subnet's output is a partial sum.

Every segment is computed by itself and added to the sum of those before it, whoever asks for it: a subnet's numbers do not depend
on its siblings, and a sibling that is already there is where its larger ones go on. They are those of
:class:`growtas.nn.supernet.Supernet` up to rounding.

Without gradients the attention can do with less than :mod:`growtas.nn.packed`:

* ``exp2`` without a maximum to subtract, where no logit is large, and a division at the end: the sum of the weights comes out of
  the values' product, which has a column of ones for it.
* A query's position is known, so the terms of its row and column are a matrix product with a table of its own, and so are the
  relative values of the attention on rows and columns.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from growtas.nn.fused import fusable, leading, normalise, parts
from growtas.nn.packed import PART_BYTES
from growtas.nn.relative import GridIndex, grid_index, unroll_tables
from growtas.nn.supernet import Supernet
from growtas.nn.vit import Block

Begun = tuple[int, Tensor]
"""A choice, and what a layer returned for it."""

# exp2 of larger numbers, summed up over a row, could leave float32's range.
_LARGE = 100.0


@dataclass(frozen=True)
class _Tables:
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
class _Cut:
    """The weights of a segment of heads, as the attention takes them.

    Attributes:
        weight, bias: of q, k and v, ``(3 * heads * head_dim, embed_dim)``; q's with the logits' scale, k's and v's biases zero.
        projection: ``(heads * head_dim, embed_dim)``.
        constant: ``(embed_dim,)``, what the segment adds to every token.
    """

    weight: Tensor
    bias: Tensor
    projection: Tensor
    constant: Tensor


class _Scratch:
    """Memory of one thread for some images and heads; "wide" as in :mod:`growtas.nn.packed`."""

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


class SiblingLayers:
    """The layers of a supernet whose weights don't change any more; for all threads.

    Args:
        supernet: in eval mode.
    """

    def __init__(self, supernet: Supernet) -> None:
        self._supernet, self._space = supernet, supernet.space
        self._tables: dict[int, _Tables] = {}
        self._cuts: dict[tuple[int, int, int, int], _Cut] = {}
        self._local = threading.local()

    @property
    def head_choices(self) -> Sequence[int]:
        """The space's numbers of heads, ascending."""
        return sorted(set(self._space.num_heads))

    def hidden_choices(self, dim: int) -> Sequence[int]:
        """The space's numbers of hidden channels at a width, ascending."""
        return sorted({int(dim * ratio) for ratio in self._space.mlp_ratio})

    def attention(
        self, x: Tensor, index: int, num_heads: Sequence[int], into: Sequence[Tensor | None] = (), begun: Begun | None = None
    ) -> list[Tensor]:
        """:meth:`growtas.nn.supernet.Supernet.attention_layer` of the same tokens for several numbers of heads.

        Args:
            x: ``(batch, N, embed_dim)``.
            index: the block.
            num_heads: any; only the space's own choices share work.
            into: tensors like ``x`` to write the results to; None for a new one.
            begun: fewer heads than all of ``num_heads``, and what this returned for them.

        Returns:
            A tensor like ``x`` each, in the order of ``num_heads``.
        """
        block, choices = self._block(index), self.head_choices
        into = into or [None] * len(num_heads)
        if not block.attn.fusable(x, block.norm1) or not set(num_heads) <= set(choices):
            return _placed([self._supernet.attention_layer(x, index, heads) for heads in num_heads], into)
        batch, tokens, dim = x.shape
        normed = normalise(x.reshape(-1, dim), block.norm1.weight, block.norm1.bias)[0].view(batch, tokens, dim)

        def add(into: Tensor, before: Tensor, start: int, stop: int) -> None:
            cut = self._attention_cut(index, dim, start, stop)
            torch.add(before, cut.constant, out=into)
            into.addmm_(self._attend(normed, index, start, stop, cut), cut.projection)

        return _sums(x, choices, num_heads, into, begun, add)

    def mlp(
        self, x: Tensor, index: int, hidden_dims: Sequence[int], into: Sequence[Tensor | None] = (), begun: Begun | None = None
    ) -> list[Tensor]:
        """:meth:`growtas.nn.supernet.Supernet.mlp_layer` of the same tokens for several numbers of hidden channels.

        Args:
            x: ``(batch, N, embed_dim)``.
            index: the block.
            hidden_dims: any; only those of the space's own choices share work.
            into: tensors like ``x`` to write the results to; None for a new one.
            begun: fewer hidden channels than all of ``hidden_dims``, and what this returned for them.

        Returns:
            A tensor like ``x`` each, in the order of ``hidden_dims``.
        """
        block, dim = self._block(index), x.shape[-1]
        into = into or [None] * len(hidden_dims)
        choices = self.hidden_choices(dim)
        layers = (block.norm2, block.fc1, block.fc2)
        if not fusable(x, layers) or not set(hidden_dims) <= set(choices):
            return _placed([self._supernet.mlp_layer(x, index, hidden) for hidden in hidden_dims], into)
        normed = normalise(x.reshape(-1, dim), block.norm2.weight, block.norm2.bias)[0]
        first, second = leading(block.fc1.weight, block.fc1.out_features, dim), leading(block.fc2.weight, dim)

        def add(into: Tensor, before: Tensor, start: int, stop: int) -> None:
            if start:
                into.copy_(before)
            else:
                torch.add(before, block.fc2.bias[:dim], out=into)
            hidden = torch.addmm(block.fc1.bias[start:stop], normed, first[start:stop].t())
            torch.ops.aten.gelu.out(hidden, out=hidden)
            into.addmm_(hidden, second[:, start:stop].t())

        return _sums(x, choices, hidden_dims, into, begun, add)

    def _attend(self, normed: Tensor, index: int, start: int, stop: int, cut: _Cut) -> Tensor:
        """What heads ``start`` to ``stop`` hand to the projection, v's biases left out: ``(batch * N, heads * head_dim)``."""
        batch, tokens, dim = normed.shape
        tables, heads, head_dim = self._of_layer(index), stop - start, self._space.head_dim
        out = torch.empty(batch, tokens, heads, head_dim, dtype=normed.dtype)
        slices = parts(batch, max(1, PART_BYTES // (4 * heads * tokens * tokens)))
        scratch = self._scratch(slices[0].stop if slices else 0, heads, normed.dtype)
        for part in slices:
            images = part.stop - part.start
            groups, rows_in = images * heads, normed[part].view(-1, dim)
            query, key, value, attended = (held[:groups] for held in (scratch.query, scratch.key, scratch.value, scratch.attended))
            qkv = torch.addmm(cut.bias, rows_in, cut.weight.t(), out=scratch.qkv[: images * tokens])
            split = qkv.view(images, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
            for wide, own in zip((query, key, value), split, strict=True):
                wide.view(images, heads, tokens, -1)[..., :head_dim].copy_(own)
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

    def _block(self, index: int) -> Block:
        block = self._supernet.blocks[index]
        assert isinstance(block, Block)
        return block

    @property
    def _grid(self) -> GridIndex:
        return grid_index(self._space.grid_size, self._space.grid_size, self._space.max_relative_position, "cpu")

    def _of_layer(self, index: int) -> _Tables:
        tables = self._tables.get(index)
        if tables is None:
            grid, attn = self._grid, self._block(index).attn
            key, value = attn.relative_key, attn.relative_value
            key_table, _ = unroll_tables(key.vertical, key.horizontal, grid)
            value_table, cls_value = unroll_tables(value.vertical, value.horizontal, grid)
            tables = _Tables(key_table[grid.lines].transpose(1, 2).contiguous(), value_table[grid.lines], cls_value)
            self._tables[index] = tables
        return tables

    def _attention_cut(self, index: int, dim: int, start: int, stop: int) -> _Cut:
        held = self._cuts.get((index, dim, start, stop))
        if held is None:
            attn, head_dim = self._block(index).attn, self._space.head_dim
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
            held = self._cuts[index, dim, start, stop] = _Cut(weight, bias, projection, constant)
        return held

    def _constant(self, index: int, dim: int, heads: int) -> Tensor:
        """What the first heads add to every token: the projection of v's biases and of the relative value of cls, and its bias."""
        attn, width = self._block(index).attn, heads * self._space.head_dim
        values = attn.qkv.bias[2 * width : 3 * width] + self._of_layer(index).cls_value.repeat(heads)
        return torch.addmv(attn.proj.bias[:dim], leading(attn.proj.weight, dim, width), values)

    def _scratch(self, images: int, heads: int, dtype: torch.dtype) -> _Scratch:
        # The constant columns stay, so the memory of one call serves the next ones.
        held: dict[tuple[int, int, torch.dtype], _Scratch] = self._local.__dict__.setdefault("held", {})
        key = images, heads, dtype
        if key not in held:
            held[key] = _Scratch(images, heads, self._space.head_dim, self._grid, dtype)
        return held[key]


def _sums(
    x: Tensor,
    choices: Sequence[int],
    wanted: Sequence[int],
    into: Sequence[Tensor | None],
    begun: Begun | None,
    add: Callable[[Tensor, Tensor, int, int], None],
) -> list[Tensor]:
    """The partial sums at ``wanted``: from ``x``, or from what has begun, segment by segment.

    Args:
        add: writes to its first argument the second one plus the segment from the third to the fourth one; both are
            ``(batch * N, embed_dim)``, and may be the same.
    """
    places = dict(zip(wanted, into, strict=True))
    first, before = begun if begun else (0, x)
    found: dict[int, Tensor] = {}
    before, spare = before.reshape(-1, x.shape[-1]), None
    for start, stop in itertools.pairwise([first, *(choice for choice in choices if first < choice <= max(wanted))]):
        if stop in places:
            place = places[stop]
            found[stop] = torch.empty_like(x) if place is None else place
            rows = found[stop].view(before.shape)
        else:
            rows = spare = torch.empty_like(before) if spare is None else spare
        add(rows, before, start, stop)
        before = rows
    return [found[choice] for choice in wanted]


def _placed(results: Sequence[Tensor], into: Sequence[Tensor | None]) -> list[Tensor]:
    return [result if place is None else place.copy_(result) for result, place in zip(results, into, strict=True)]


def _exponentials(logits: Tensor) -> None:
    """``exp2`` in place; where a logit is large, each row's largest is subtracted first, which the division undoes."""
    least, largest = torch.aminmax(logits)
    if not (float(largest) < _LARGE and float(least) > -_LARGE):
        logits -= logits.amax(-1, keepdim=True)
    torch.exp2(logits, out=logits)
