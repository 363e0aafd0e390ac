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
        weights = torch.bmm(query, key.transpose(1, 2))
        torch.softmax(weights, -1, out=weights)

        value = v.reshape(groups, tokens, head_dim)
        attended = torch.bmm(weights, value)
        masses = weights.view(-1, tokens) @ onehot
        placed = masses.view(groups, tokens, -1).gather(-1, grid.distances.expand(groups, -1, -1))
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
        placed = masses.view(groups, tokens, -1).gather(-1, distances).view(groups * tokens, -1)
        grad_value_table = placed.t() @ narrow
        grad[..., head_dim:] = (narrow @ value_table.t()).view(groups, tokens, -1).gather(-1, lines)
        grad_qkv = query.new_empty(batch, tokens, 3, heads, head_dim)
        into = grad_qkv.permute(2, 0, 3, 1, 4)
        into[2].copy_(torch.bmm(weights.transpose(1, 2), grad[..., :head_dim]).view(split))

        # Softmax, in place: the weights' gradient is the largest tensor here.
        grad_logits = torch.bmm(grad, torch.cat([value, key[..., head_dim:]], dim=-1).transpose(1, 2))
        torch.ops.aten._softmax_backward_data.out(grad_logits, weights, -1, weights.dtype, grad_input=grad_logits)

        # Keys and queries: logits = [q, terms] [k, onehot], terms from q x table.
        into[1].copy_(torch.bmm(grad_logits.transpose(1, 2), query[..., :head_dim]).view(split))
        grad_query = torch.bmm(grad_logits, key)
        grad_terms = grad_query[..., head_dim:].gather(-1, distances).view(groups * tokens, -1)
        grad_key_table = grad_terms.t() @ query.view(-1, wide)[:, :head_dim]
        grad_query.view(-1, wide)[:, :head_dim].addmm_(grad_terms, key_table)
        torch.mul(grad_query.view(*split[:3], wide)[..., :head_dim], head_dim**-0.5, out=into[0])
        return grad_qkv.view(batch, tokens, -1), grad_key_table, grad_value_table, None, None
