"""The MLP half of a block for training on the CPU, as one autograd function; see :mod:`growtas.nn.fused.common`.

For the backward pass it stores the tokens, which the residual stream needs anyway, and the output of fc1. The backward pass
computes the normalised tokens and the output of the GELU again, two thousand rows at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from growtas.nn.fused.common import Gradient, Norm, fusable, leading, normalise, normalise_backward, parts

# Smaller parts slow down the matrix products (3 % at 400 rows per thread) more than the cache speeds up the GELU.
ROWS = 2048


def mlp_fusable(x: Tensor, norm: nn.Module, fc1: nn.Module, fc2: nn.Module) -> bool:
    """Whether :func:`fused_mlp` may replace the layers and is faster. Without gradients a single part gains nothing."""
    return (torch.is_grad_enabled() or x.shape[:-1].numel() > ROWS) and fusable(x, (norm, fc1, fc2))


def fused_mlp(x: Tensor, norm: nn.LayerNorm | Norm, fc1: nn.Linear, fc2: nn.Linear, hidden_dim: int, *, residual: bool) -> Tensor:
    """Computes ``fc2(gelu(fc1(norm(x))))`` with the leading blocks of the weights.

    Call it only if :func:`mlp_fusable` allows it.

    Args:
        x: tokens, ``(batch, N, dim)``.
        norm, fc1, fc2: layers for at least ``dim`` channels and ``hidden_dim`` hidden channels.
        hidden_dim: number of channels between fc1 and fc2.
        residual: whether to add ``x``.

    Returns:
        ``(batch, N, dim)``.
    """
    inputs = (x, norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    if torch.is_grad_enabled():
        return _FusedMLP.apply(*inputs, hidden_dim, residual, norm.eps)
    return _forward(*inputs, hidden_dim, residual, norm.eps, None)


def _forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    hidden_dim: int,
    residual: bool,
    eps: float,
    hidden: Tensor | None,
) -> Tensor:
    """Computes the result. Writes the output of fc1 into ``hidden``, ``(rows, hidden_dim)``, if that is given."""
    shape, dim = x.shape, x.shape[-1]
    x = x.reshape(-1, dim).contiguous()
    weight1, bias1 = leading(fc1_weight, hidden_dim, dim).t(), fc1_bias[:hidden_dim]
    weight2, bias2 = leading(fc2_weight, dim, hidden_dim).t(), fc2_bias[:dim]
    out = torch.empty_like(x)
    slices = parts(len(x), ROWS)
    activated = x.new_empty(slices[0].stop if slices else 0, hidden_dim)
    for part in slices:
        rows, after = x[part], activated[: part.stop - part.start]
        before = after if hidden is None else hidden[part]
        torch.addmm(bias1, normalise(rows, norm_weight, norm_bias, eps)[0], weight1, out=before)
        torch.ops.aten.gelu.out(before, out=after)
        if residual:
            torch.add(rows, bias2, out=out[part]).addmm_(after, weight2)
        else:
            torch.addmm(bias2, after, weight2, out=out[part])
    return out.view(shape)


class _FusedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        *weights, hidden_dim, residual, eps = rest
        x = x.contiguous()
        hidden = x.new_empty(x.shape[:-1].numel(), hidden_dim)
        ctx.save_for_backward(x, hidden, *weights)
        ctx.residual, ctx.eps = residual, eps
        return _forward(x, *weights, hidden_dim, residual, eps, hidden)  # type: ignore[call-arg]  # six weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias = ctx.saved_tensors
        shape, dim, hidden_dim = x.shape, x.shape[-1], hidden.shape[1]
        x, grad = x.view(-1, dim), grads[0].reshape(-1, dim).contiguous()
        weight1, weight2 = leading(fc1_weight, hidden_dim, dim), leading(fc2_weight, dim, hidden_dim)
        needs_grad = ctx.needs_input_grad
        into_norm = Gradient(norm_weight, (dim,), needs_grad[1]), Gradient(norm_bias, (dim,), needs_grad[2])
        into_weight1, into_bias1 = (
            Gradient(fc1_weight, (hidden_dim, dim), needs_grad[3]),
            Gradient(fc1_bias, (hidden_dim,), needs_grad[4]),
        )
        into_weight2, into_bias2 = Gradient(fc2_weight, (dim, hidden_dim), needs_grad[5]), Gradient(fc2_bias, (dim,), needs_grad[6])
        grad_x = torch.empty_like(x) if any(needs_grad[:3]) else None

        slices = parts(len(x), ROWS)
        most = slices[0].stop if slices else 0
        activated, grad_activated = x.new_empty(most, hidden_dim), x.new_empty(most, hidden_dim)
        for part in slices:
            rows, grad_rows, before = x[part], grad[part], hidden[part]
            after, grad_hidden = activated[: len(rows)], grad_activated[: len(rows)]
            into_bias2.add_rows(grad_rows)
            if needs_grad[5]:
                torch.ops.aten.gelu.out(before, out=after)
                into_weight2.add_product(grad_rows.t(), after)
            torch.mm(grad_rows, weight2, out=grad_hidden)
            torch.ops.aten.gelu_backward.grad_input(grad_hidden, before, grad_input=grad_hidden)
            into_bias1.add_rows(grad_hidden)
            normed, mean, rstd = normalise(rows, norm_weight, norm_bias, ctx.eps)
            into_weight1.add_product(grad_hidden.t(), normed)
            if grad_x is not None:
                # The normalised rows are no longer needed; their memory is reused because it is in the cache.
                grad_normed = torch.mm(grad_hidden, weight1, out=normed)
                grad_rows_x = normalise_backward(grad_normed, rows, mean, rstd, norm_weight, *into_norm)
                if ctx.residual:
                    torch.add(grad_rows_x, grad_rows, out=grad_x[part])
                else:
                    grad_x[part] = grad_rows_x
        weights = (*into_norm, into_weight1, into_bias1, into_weight2, into_bias2)
        to_x = grad_x.view(shape) if grad_x is not None and needs_grad[0] else None
        return to_x, *(gradient.result() for gradient in weights), None, None, None
