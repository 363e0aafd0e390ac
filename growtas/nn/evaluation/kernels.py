"""C kernels for the operations between the matrix products of an evaluation on a CPU.

PyTorch without a compiler runs a norm, a GELU and a softmax as separate passes through memory, and small attentions are mostly
copies. The extension module ``growtas.nn.evaluation._kernels`` is built if there is a C compiler when growtas is installed. Without
it, :mod:`growtas.nn.evaluation.layers` uses PyTorch's functions and gives the same results up to rounding.

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
# Size of the scratch memory, chosen so that the queries of all heads stay in the cache until the last step.
SCRATCH_BYTES = 512 << 10


def usable(dtype: torch.dtype, head_dim: int = _LANES) -> bool:
    """Whether the kernels are installed and support the data type and the number of channels per head."""
    return _compiled is not None and dtype == torch.float32 and head_dim % _LANES == 0


def instructions() -> str | None:
    """Returns the instruction set that the kernels use: avx512, avx2 or plain; None without the kernels."""
    return None if _compiled is None else _compiled.instructions()


@dataclass(frozen=True)
class PositionTables:
    """The relative position of a layer in the form for :func:`attend`. ``L`` grid lines are padded to a multiple of 16.

    Attributes:
        key: a matrix for each position of a query; the query times this matrix gives the terms of the grid lines,
            ``(N, head_dim, L)``.
        value: a matrix for each position of a query; the attention on grid lines times this matrix gives the relative value,
            ``(N, L, head_dim)``.
        lines_of_keys: 1 if a key lies on a grid line, else 0, ``(L, keys)``, where ``keys`` is N padded to a multiple of 16.
        lines_of_values: the transpose without padding, with ones in the last column, ``(N, L)``.
    """

    key: Tensor
    value: Tensor
    lines_of_keys: Tensor
    lines_of_values: Tensor

    @classmethod
    def of(cls, key: Tensor, value: Tensor, grid: GridIndex) -> PositionTables:
        """Builds the tables from tables with the number of lines of ``grid``, whose last line is always padding."""
        tokens, lines = grid.onehot.shape
        more = -lines % _LANES
        by_value = F.pad(grid.onehot, (0, more))
        by_key = F.pad(by_value.t(), (0, -tokens % _LANES)).contiguous()
        by_value[:, -1] = 1
        return cls(F.pad(key, (0, more)).contiguous(), F.pad(value, (0, 0, 0, more)).contiguous(), by_key, by_value)


def attend(qkv: Tensor, query_bias: Tensor, tables: PositionTables, images: int) -> Tensor:
    """Computes attention with relative position on keys and values, with a softmax to the base 2.

    Args:
        qkv: q, k and v, each head by head, ``(images * N, 3 * heads * head_dim)``; q includes the scale of the logits.
        query_bias: bias that is added to q, ``(heads * head_dim,)``.
        tables: relative position of the layer.
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
    """Computes the exact ``gelu(x + bias)`` in place, for a contiguous ``x``, ``(rows, columns)``, and ``bias``, ``(columns,)``."""
    assert x.is_contiguous()
    bias = bias.contiguous()
    _compiled.bias_gelu(x.data_ptr(), bias.data_ptr(), x.shape[0], x.shape[1])
    return x


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Returns the layer norm of ``(rows, columns)`` with the leading ``columns`` entries of weight and bias."""
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    out = torch.empty_like(x)
    rows, columns = x.shape
    _compiled.layer_norm(x.data_ptr(), out.data_ptr(), weight.data_ptr(), bias.data_ptr(), rows, columns, eps)
    return out
