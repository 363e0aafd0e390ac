"""The attention half of a block for the CPU, as one autograd function; see :mod:`growtas.nn.fused.common`.

The formulas are those of :mod:`growtas.nn.relative`. PyTorch's CPU flash attention computes the logits again in its backward pass,
and also the gradients of the one-hot columns, which are not needed. For the number of tokens of an image it is faster to store the
attention weights. Also stored are the tokens, q, k and v in the form for the matrix products, the masses by distance and the
projection's input. Everything else is computed again in the backward pass, a few images at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from growtas.nn.fused.common import Gradient, leading, normalise, normalise_backward, parts
from growtas.nn.fused.layout import Layout

# Largest size of the attention weights (float32) of a part of the batch.
PART_BYTES = 4 << 20
# Rows of the attention weights are padded to a multiple of this many numbers (a cache line of float32), if that adds little: 208
# keys for 197 tokens. The matrix products for the logits are 10 to 15 % faster, and softmax is faster too.
ALIGNED = 16
# The logit of a padding key, whose weight becomes exactly zero.
MASKED = -1e30


def fused_attention(
    x: Tensor,
    norm: nn.LayerNorm | None,
    qkv: nn.Linear,
    tables: tuple[Tensor, Tensor, Tensor, Tensor],
    proj: nn.Linear,
    layout: Layout,
) -> Tensor:
    """Computes ``proj(attention(qkv(norm(x))))`` with the leading blocks of the weights.

    Call it only if :func:`growtas.nn.fused.common.fusable` allows it.

    Args:
        x: tokens, ``(batch, N, dim)``.
        norm: LayerNorm of at least the needed width; None if x is already normalised.
        qkv, proj: layers of at least the needed width.
        tables: the vertical and horizontal key tables, then the value tables, ``(2 * max_relative_position + 2, head_dim)`` each.
        layout: heads, indices and the order of the qkv weight.

    Returns:
        ``(batch, N, dim)``.
    """
    norms = (None, None) if norm is None else (norm.weight, norm.bias)
    inputs = (x, *norms, qkv.weight, qkv.bias, *tables, proj.weight, proj.bias)
    if torch.is_grad_enabled():
        return _FusedAttention.apply(*inputs, layout)
    return _forward(*inputs, layout, None)  # type: ignore[call-arg]  # the number of arguments is right


class _Saved:
    """Tensors that the forward pass stores for the backward pass; without gradients, the scratch memory of a single part."""

    def __init__(self, x: Tensor, batch: int, tokens: int, width: int, layout: Layout) -> None:
        groups, distances = batch * layout.heads, layout.grid.distances.shape[1]
        wide, keys = width // layout.heads + layout.grid.onehot.shape[1], padded_keys(tokens)
        self.query = x.new_empty(groups, tokens, wide)
        self.key, self.value = (x.new_empty(groups, keys, wide) for _ in range(2))
        self.context = x.new_empty(batch * tokens, width)
        self.weights, self.placed = x.new_empty(groups, tokens, keys), x.new_empty(groups, tokens, distances)

    def fill_constants(self, onehot: Tensor) -> None:
        """Writes the one-hot columns, and the padding of keys and values."""
        tokens, lines = onehot.shape
        for wide in (self.key, self.value):
            wide[:, :tokens, -lines:] = onehot
            wide[:, tokens:] = 0
        # The last column belongs to no grid line (see GridIndex), and queries have a one in it.
        self.key[:, tokens:, -1] = MASKED


class _PartViews:
    """Views of the rows and the scratch memory of one part. "Wide" tensors have head_dim columns, then L columns for grid lines."""

    def __init__(self, like: Tensor, images: int, tokens: int, head_dim: int, layout: Layout) -> None:
        self.heads, self.tokens, self.head_dim, self.grid = layout.heads, tokens, head_dim, layout.grid
        self.lines = layout.grid.onehot.shape[1]
        self.like, self.groups = like, images * layout.heads

    def wide(self) -> Tensor:
        """Returns scratch memory ``(groups, N, head_dim + L)``."""
        return self.like.new_empty(self.groups, self.tokens, self.head_dim + self.lines)

    def by_head(self, grouped: Tensor) -> Tensor:
        """Returns the leading head_dim columns of ``(groups, N or more, columns)`` as a view ``(images, heads, N, head_dim)``."""
        return grouped.view(-1, self.heads, *grouped.shape[1:])[:, :, : self.tokens, : self.head_dim]

    def split(self, qkv: Tensor) -> Tensor:
        """Returns rows of q, k, v as a view ``(3, images, heads, N, head_dim)``."""
        return qkv.view(-1, self.tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)

    def narrow(self, wide: Tensor) -> Tensor:
        """Returns the leading head_dim columns of a wide tensor as a matrix, a view."""
        return wide.view(-1, wide.shape[-1])[:, : self.head_dim]

    def to_lines(self, by_distance: Tensor, wide: Tensor) -> None:
        """Gathers the entries of each query's grid lines from ``(groups * N, D)`` into the last columns of a wide tensor."""
        groups = len(wide)
        index = self.grid.lines.expand(groups, -1, -1)
        torch.gather(by_distance.view(groups, self.tokens, -1), -1, index, out=wide[..., self.head_dim :])

    def to_distances(self, wide: Tensor, placed: Tensor) -> Tensor:
        """Does the inverse of :meth:`to_lines` into ``placed``, ``(groups, N, D)``, and returns it as ``(groups * N, D)``."""
        torch.gather(wide[..., self.head_dim :], -1, self.grid.distances.expand(len(wide), -1, -1), out=placed)
        return placed.view(-1, placed.shape[-1])


def _forward(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    key_vertical: Tensor,
    key_horizontal: Tensor,
    value_vertical: Tensor,
    value_horizontal: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    layout: Layout,
    saved: _Saved | None,
) -> Tensor:
    batch, tokens, dim = x.shape
    heads, head_dim = layout.heads, key_vertical.shape[1]
    key_table, _ = layout.unroll(key_vertical, key_horizontal)
    value_table, cls_value = layout.unroll(value_vertical, value_horizontal)
    width, x = heads * head_dim, x.contiguous().view(-1, dim)
    weight = layout.rows(qkv_weight, width, dim).reshape(3 * width, dim).t()
    bias, to_out, out_bias = qkv_bias[: 3 * width], leading(proj_weight, dim, width).t(), proj_bias[:dim]
    slices = batch_parts(batch, heads, tokens)
    images = slices[0].stop if slices else 0
    part = _PartViews(x, images, tokens, head_dim, layout)
    buffers = saved or _Saved(x, images, tokens, width, layout)
    buffers.fill_constants(layout.grid.onehot.to(x.dtype))
    qkv, wide_attended, out = x.new_empty(images * tokens, 3 * width), part.wide(), torch.empty_like(x)

    for slots in slices:
        count, rows = slots.stop - slots.start, slice(slots.start * tokens, slots.stop * tokens)
        groups = slice(slots.start * heads, slots.stop * heads)
        buffer_rows, buffer_groups = (rows, groups) if saved else (slice(count * tokens), slice(count * heads))
        tokens_in = x[rows]
        normed = tokens_in if norm_weight is None or norm_bias is None else normalise(tokens_in, norm_weight, norm_bias)[0]
        q, k, v = part.split(torch.addmm(bias, normed, weight, out=qkv[: count * tokens]))

        query, key, value = (t[buffer_groups] for t in (buffers.query, buffers.key, buffers.value))
        torch.mul(q, head_dim**-0.5, out=part.by_head(query))
        part.to_lines(part.narrow(query) @ key_table.t(), query)
        query[..., -1] = 1
        part.by_head(key).copy_(k)
        part.by_head(value).copy_(v)

        weights, placed, attended = buffers.weights[buffer_groups], buffers.placed[buffer_groups], wide_attended[: count * heads]
        torch.bmm(query, key.transpose(1, 2), out=weights)
        torch.softmax(weights, -1, out=weights)
        torch.bmm(weights, value, out=attended)
        part.narrow(attended).addmm_(part.to_distances(attended, placed), value_table)

        context = buffers.context[buffer_rows]
        torch.add(part.by_head(attended).transpose(1, 2), cls_value, out=context.view(count, tokens, heads, head_dim))
        if layout.residual:
            torch.add(tokens_in, out_bias, out=out[rows]).addmm_(context, to_out)
        else:
            torch.addmm(out_bias, context, to_out, out=out[rows])
    return out.view(batch, tokens, dim)


def padded_keys(tokens: int) -> int:
    """Returns the length of a row of attention weights: the number of tokens, padded to full cache lines if that is cheap."""
    aligned = -(-tokens // ALIGNED) * ALIGNED
    return aligned if aligned - tokens <= tokens // 16 else tokens


def batch_parts(batch: int, heads: int, tokens: int) -> list[slice]:
    """Divides the batch into parts with at most ``PART_BYTES`` of attention weights (float32)."""
    return parts(batch, max(1, PART_BYTES // (4 * heads * tokens * tokens)))


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        *weights, layout = rest
        x, head_dim = x.contiguous(), weights[4].shape[1]
        saved = _Saved(x, x.shape[0], x.shape[1], layout.heads * head_dim, layout)
        out = _forward(x, *weights, layout, saved)  # type: ignore[call-arg]
        ctx.save_for_backward(x, saved.query, saved.key, saved.value, saved.context, saved.weights, saved.placed, *weights)
        ctx.layout = layout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, saved_query, saved_key, saved_value, saved_context, saved_weights, saved_placed, *weights = ctx.saved_tensors
        norm_weight, norm_bias, qkv_weight, qkv_bias, *tables, proj_weight, proj_bias = weights
        layout: Layout = ctx.layout
        key_table, _ = layout.unroll(*tables[:2])
        value_table, cls_value = layout.unroll(*tables[2:])
        batch, tokens, dim = x.shape
        heads, head_dim, needs_grad = layout.heads, key_table.shape[1], ctx.needs_input_grad
        width, x, grad = heads * head_dim, x.view(-1, dim), grads[0].reshape(-1, dim).contiguous()
        weight = layout.rows(qkv_weight, width, dim).reshape(3 * width, dim)
        to_out = leading(proj_weight, dim, width)

        has_norm = norm_weight is not None
        into_norm = (Gradient(norm_weight, (dim,), needs_grad[1]), Gradient(norm_bias, (dim,), needs_grad[2])) if has_norm else ()
        into_weight = Gradient(weight, (3 * width, dim), needs_grad[3])
        into_bias = Gradient(qkv_bias, (3 * width,), needs_grad[4])
        into_key = Gradient(key_table, key_table.shape, any(needs_grad[5:7]))
        into_value = Gradient(value_table, value_table.shape, any(needs_grad[7:9]))
        into_cls = Gradient(cls_value, cls_value.shape, any(needs_grad[7:9]))
        into_out, into_out_bias = Gradient(proj_weight, (dim, width), needs_grad[9]), Gradient(proj_bias, (dim,), needs_grad[10])
        grad_x = torch.empty_like(x) if any(needs_grad[:3]) else None

        slices = batch_parts(batch, heads, tokens)
        images = slices[0].stop if slices else 0
        part = _PartViews(x, images, tokens, head_dim, layout)
        wide_grad, wide_grad_query = part.wide(), part.wide()
        distances = x.new_empty(images * heads, tokens, layout.grid.distances.shape[1])
        keys = saved_weights.shape[2]
        logits = x.new_empty(images * heads, tokens, keys)
        narrow_key, narrow_value = (x.new_empty(images * heads, keys, head_dim) for _ in range(2))
        grad_qkv = x.new_empty(images * tokens, 3 * width)
        for slots in slices:
            count, rows = slots.stop - slots.start, slice(slots.start * tokens, slots.stop * tokens)
            some, groups = count * heads, slice(slots.start * heads, slots.stop * heads)
            grad_rows, attention = grad[rows], saved_weights[groups]
            query, key, value = saved_query[groups, :, :head_dim], saved_key[groups], saved_value[groups]
            grad_out, grad_query = wide_grad[:some], wide_grad_query[:some]

            # The projection.
            into_out_bias.add_rows(grad_rows)
            into_out.add_product(grad_rows.t(), saved_context[rows])
            grad_context = (grad_rows @ to_out).view(count, tokens, heads, head_dim)
            into_cls.add_rows(grad_context.view(-1, head_dim))

            # Values: out = weights v + placed masses x table.
            part.by_head(grad_out).copy_(grad_context.transpose(1, 2))
            narrow = part.narrow(grad_out)
            placed = saved_placed[groups]
            into_value.add_product(placed.view(-1, placed.shape[-1]).t(), narrow)
            part.to_lines(narrow @ value_table.t(), grad_out)

            # Keys and queries: logits = [q, terms] [k, onehot], terms from q x table.
            grad_logits, grad_key, grad_value = logits[:some], narrow_key[:some], narrow_value[:some]
            torch.bmm(grad_out, value.transpose(1, 2), out=grad_logits)
            torch.ops.aten._softmax_backward_data.out(grad_logits, attention, -1, attention.dtype, grad_input=grad_logits)
            torch.bmm(grad_logits, key, out=grad_query)
            torch.bmm(grad_logits.transpose(1, 2), query, out=grad_key)
            torch.bmm(attention.transpose(1, 2), grad_out[..., :head_dim], out=grad_value)
            grad_terms = part.to_distances(grad_query, distances[:some])
            into_key.add_product(grad_terms.t(), part.narrow(saved_query[groups]))
            part.narrow(grad_query).addmm_(grad_terms, key_table)
            into_q, into_k, into_v = part.split(grad_qkv[: count * tokens])
            torch.mul(part.by_head(grad_query), head_dim**-0.5, out=into_q)
            into_k.copy_(part.by_head(grad_key))
            into_v.copy_(part.by_head(grad_value))

            # q, k and v from the tokens.
            grad_part, tokens_in = grad_qkv[: count * tokens], x[rows]
            normed, mean, rstd = normalise(tokens_in, norm_weight, norm_bias) if has_norm else (tokens_in, None, None)
            into_bias.add_rows(grad_part)
            into_weight.add_product(grad_part.t(), normed)
            if grad_x is not None:
                to_tokens = grad_part @ weight
                if has_norm:
                    to_tokens = normalise_backward(to_tokens, tokens_in, mean, rstd, norm_weight, *into_norm)  # type: ignore[arg-type]
                if layout.residual:
                    torch.add(to_tokens, grad_rows, out=grad_x[rows])
                else:
                    grad_x[rows] = to_tokens

        qkv_gradient = _whole_qkv(into_weight.result(), qkv_weight, layout, width, dim)
        norms = tuple(gradient.result() for gradient in into_norm) if has_norm else (None, None)
        to_x = grad_x.view(batch, tokens, dim) if grad_x is not None and needs_grad[0] else None
        to_tables = (
            *layout.unroll_backward(into_key.result(), None),
            *layout.unroll_backward(into_value.result(), into_cls.result()),
        )
        return to_x, *norms, qkv_gradient, into_bias.result(), *to_tables, into_out.result(), into_out_bias.result(), None


def _whole_qkv(gradient: Tensor | None, weight: Tensor, layout: Layout, width: int, dim: int) -> Tensor | None:
    """Copies a gradient in q, k, v order into the rows of the whole weight."""
    if gradient is None or (gradient.shape == weight.shape and not layout.interleaved):
        return gradient
    whole = torch.zeros_like(weight)
    layout.rows(whole, width, dim).copy_(gradient.view(3, width, dim))
    return whole
