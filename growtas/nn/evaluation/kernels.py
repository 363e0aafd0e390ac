"""Kernels in C for what lies between the matrix products of an evaluation on a CPU.

PyTorch has no compiler at hand there: a norm, a GELU, a softmax are passes through memory of their own, and small attentions
are mostly copies. The extension module ``growtas.nn.evaluation._kernels`` is built where there is a C compiler when growtas is
installed; without it :mod:`growtas.nn.evaluation.layers` computes the same with PyTorch's functions, up to rounding.

All tensors are float32 and on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from growtas.nn.relative import GridIndex

try:
    from growtas.nn.evaluation import _kernels as _compiled
except ImportError:
    _compiled = None  # type: ignore[assignment]

_LANES = 16
# An image's queries of all heads stay in the cache until the last step.
SCRATCH_BYTES = 512 << 10


def usable(dtype: torch.dtype, head_dim: int = _LANES) -> bool:
    """Whether the kernels are there and can take such numbers, and heads of so many channels."""
    return _compiled is not None and dtype == torch.float32 and head_dim % _LANES == 0


def instructions() -> str | None:
    """The set of instructions that the kernels use: avx512, avx2 or plain; None without the kernels."""
    return None if _compiled is None else _compiled.instructions()


@dataclass(frozen=True)
class PositionTables:
    """A layer's relative position as :func:`attend` takes it; ``L`` is the grid's lines, padded to a multiple of 16.

    Attributes:
        key: ``(N, head_dim, L)``: a query's content times the matrix of its position gives the terms of the grid's lines.
        value: ``(N, L, head_dim)``: a query's attention on the lines times the matrix of its position gives the relative value.
        lines_of_keys: ``(L, keys)``, one where a key lies on a line; N padded to a multiple of 16.
        lines_of_values: ``(N, L)``, the same the other way round, and ones in the last column.
    """

    key: Tensor
    value: Tensor
    lines_of_keys: Tensor
    lines_of_values: Tensor

    @classmethod
    def of(cls, key: Tensor, value: Tensor, grid: GridIndex) -> PositionTables:
        """From tables with ``grid``'s own number of lines, of which the last is always padding."""
        tokens, lines = grid.onehot.shape
        more = -lines % _LANES
        by_value = F.pad(grid.onehot, (0, more))
        by_key = F.pad(by_value.t(), (0, -tokens % _LANES)).contiguous()
        by_value[:, -1] = 1
        return cls(F.pad(key, (0, more)).contiguous(), F.pad(value, (0, 0, 0, more)).contiguous(), by_key, by_value)


def attend(qkv: Tensor, query_bias: Tensor, tables: PositionTables, images: int) -> Tensor:
    """Attention with a relative position on keys and values, softmax to the base of 2.

    Args:
        qkv: ``(images * N, 3 * heads * head_dim)``: q, k and v, each head by head; q with the logits' scale.
        query_bias: ``(heads * head_dim,)``, added to q.
        tables: of the layer.
        images: number of images.

    Returns:
        ``(images * N, heads * head_dim)``.
    """
    tokens, head_dim, lines = tables.key.shape
    heads = query_bias.shape[0] // head_dim
    out = torch.empty(images * tokens, heads * head_dim)
    at_once = max(1, min(images, SCRATCH_BYTES // (4 * heads * tokens * (head_dim + lines))))
    by_line = (tables.key, tables.value, tables.lines_of_keys, tables.lines_of_values)
    tensors = (qkv.contiguous(), query_bias.contiguous(), *by_line, out)
    pointers = (tensor.data_ptr() for tensor in tensors)
    _compiled.attend(*pointers, images, tokens, heads, head_dim, lines, at_once)  # type: ignore[call-arg]  # seven pointers
    return out


def bias_gelu_(x: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x + bias)``, the exact one, in place; ``(rows, columns)``, in one piece, and ``(columns,)``."""
    assert x.is_contiguous()
    bias = bias.contiguous()
    _compiled.bias_gelu(x.data_ptr(), bias.data_ptr(), x.shape[0], x.shape[1])
    return x


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of ``(rows, columns)`` with the leading ``columns`` entries of weight and bias."""
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    out = torch.empty_like(x)
    rows, columns = x.shape
    _compiled.layer_norm(x.data_ptr(), out.data_ptr(), weight.data_ptr(), bias.data_ptr(), rows, columns, eps)
    return out
