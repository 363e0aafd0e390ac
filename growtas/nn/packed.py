"""The attention of :mod:`growtas.nn.relative` for the CPU: one autograd function over the packed q, k, v.

PyTorch's CPU flash attention recomputes the logits in its backward pass, wants the one-hot columns in every product (their
gradients too, which nobody needs), and autograd copies q, k and v several times on the way in and out. At the lengths of image
tokens it is faster to keep the attention weights and to write each intermediate once, where it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from growtas.nn.relative import GridIndex

_PART_BYTES = 1 << 20


def packed_attention(qkv: Tensor, key_table: Tensor, value_table: Tensor, heads: int, grid: GridIndex) -> Tensor:
    """Attention with the relative terms; the constant cls value is not added.

    Args:
        qkv: ``(batch, N, 3 * heads * head_dim)``: q, k and v, each head by head.
        key_table, value_table: unrolled tables, ``(D, head_dim)``; see :func:`growtas.nn.relative.unroll_tables`.
        heads: number of heads.
        grid: the indices for these N tokens.

    Returns:
        ``(batch, N, heads * head_dim)``.
    """
    return _PackedAttention.apply(qkv, key_table, value_table, heads, grid)


class _PackedAttention(torch.autograd.Function):
    """Tensors are kept as (batch * heads, N, columns); "wide" ones hold head_dim columns, then the L grid lines."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, key_table: Tensor, value_table: Tensor, heads: int, grid: GridIndex) -> Tensor:
        batch, tokens, width = qkv.shape
        head_dim, lines = width // (3 * heads), grid.onehot.shape[1]
        groups, wide, split = batch * heads, head_dim + lines, (batch, heads, tokens, head_dim)
        q, k, v = qkv.view(batch, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
        onehot = grid.onehot.to(qkv.dtype)

        query, key = qkv.new_empty(groups, tokens, wide), qkv.new_empty(groups, tokens, wide)
        torch.mul(q, head_dim**-0.5, out=query.view(*split[:3], wide)[..., :head_dim])
        terms = query.view(-1, wide)[:, :head_dim] @ key_table.t()
        query[..., head_dim:] = terms.view(groups, tokens, -1).gather(-1, grid.lines.expand(groups, -1, -1))
        key.view(*split[:3], wide)[..., :head_dim] = k
        key[..., head_dim:] = onehot
        # At batch 1 the reshape alone would be a view with the packed strides.
        value = v.reshape(groups, tokens, head_dim).contiguous()

        weights, attended = qkv.new_empty(groups, tokens, tokens), torch.empty_like(value)
        masses = qkv.new_empty(groups, tokens, lines)
        for part in _parts(groups, tokens):
            torch.bmm(query[part], key[part].transpose(1, 2), out=weights[part])
            torch.softmax(weights[part], -1, out=weights[part])
            torch.bmm(weights[part], value[part], out=attended[part])
            torch.mm(weights[part].view(-1, tokens), onehot, out=masses[part].view(-1, lines))
        placed = masses.gather(-1, grid.distances.expand(groups, -1, -1))
        attended.view(-1, head_dim).addmm_(placed.view(groups * tokens, -1), value_table)

        ctx.save_for_backward(query, key, value, weights, masses, key_table, value_table)
        ctx.heads, ctx.grid = heads, grid
        return attended.view(split).transpose(1, 2).reshape(batch, tokens, heads * head_dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, masses, key_table, value_table = ctx.saved_tensors
        heads, grid = ctx.heads, ctx.grid
        groups, tokens, wide = query.shape
        batch, head_dim = groups // heads, value.shape[-1]
        split = (batch, heads, tokens, head_dim)
        lines, distances = grid.lines.expand(groups, -1, -1), grid.distances.expand(groups, -1, -1)

        # Values: out = weights v + placed masses x table.
        grad = query.new_empty(groups, tokens, wide)
        grad.view(*split[:3], wide)[..., :head_dim] = grads[0].view(batch, tokens, heads, head_dim).transpose(1, 2)
        narrow = grad.view(-1, wide)[:, :head_dim]
        grad_value_table = masses.gather(-1, distances).view(groups * tokens, -1).t() @ narrow
        grad[..., head_dim:] = (narrow @ value_table.t()).view(groups, tokens, -1).gather(-1, lines)
        wide_value = torch.cat([value, key[..., head_dim:]], dim=-1)

        # Keys and queries: logits = [q, terms] [k, onehot], terms from q x table.
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.empty_like(value), torch.empty_like(value)
        scratch = query.new_empty(_parts(groups, tokens)[0].stop, tokens, tokens)
        for part in _parts(groups, tokens):
            grad_logits = scratch[: part.stop - part.start]
            torch.bmm(grad[part], wide_value[part].transpose(1, 2), out=grad_logits)
            torch.ops.aten._softmax_backward_data.out(grad_logits, weights[part], -1, weights.dtype, grad_input=grad_logits)
            torch.bmm(grad_logits, key[part], out=grad_query[part])
            torch.bmm(grad_logits.transpose(1, 2), query[part][..., :head_dim], out=grad_key[part])
            torch.bmm(weights[part].transpose(1, 2), grad[part][..., :head_dim], out=grad_value[part])
        grad_terms = grad_query[..., head_dim:].gather(-1, distances).view(groups * tokens, -1)
        grad_key_table = grad_terms.t() @ query.view(-1, wide)[:, :head_dim]
        grad_query.view(-1, wide)[:, :head_dim].addmm_(grad_terms, key_table)

        grad_qkv = query.new_empty(batch, tokens, 3, heads, head_dim)
        into = grad_qkv.permute(2, 0, 3, 1, 4)
        torch.mul(grad_query.view(*split[:3], wide)[..., :head_dim], head_dim**-0.5, out=into[0])
        into[1].copy_(grad_key.view(split))
        into[2].copy_(grad_value.view(split))
        return grad_qkv.view(batch, tokens, -1), grad_key_table, grad_value_table, None, None


def _parts(groups: int, tokens: int) -> list[slice]:
    """Slices of the batch whose attention weights (float32) fit a core's cache, so that softmax finds them there."""
    size = max(1, _PART_BYTES // (4 * tokens * tokens))
    return [slice(start, min(start + size, groups)) for start in range(0, groups, size)]
