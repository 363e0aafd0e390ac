"""The layout of weights and tables for the fused attention of :mod:`growtas.nn.fused.attention`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from growtas.nn.fused.common import leading
from growtas.nn.relative import GridIndex


@dataclass(frozen=True)
class Layout:
    """The layout of tokens, heads and the rows of the qkv weight.

    Attributes:
        heads: number of heads.
        grid: indices of the grid of the tokens.
        interleaved: whether rows 0, 3, 6, ... of the qkv weight are q, 1, 4, 7, ... k and 2, 5, 8, ... v; otherwise there are three
            consecutive blocks.
        residual: whether to add the tokens to the result.
    """

    heads: int
    grid: GridIndex
    interleaved: bool
    residual: bool

    def rows(self, weight: Tensor, width: int, dim: int) -> Tensor:
        """Returns the used block of a qkv weight in q, k, v order, ``(3, width, dim)``, as a view."""
        block = leading(weight, 3 * width, dim)
        shape = (width, 3, *block.shape[1:]) if self.interleaved else (3, width, *block.shape[1:])
        return block.view(shape).transpose(0, 1) if self.interleaved else block.view(shape)

    def unroll(self, vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the table ``(D, head_dim)`` and the cls entry ``(head_dim,)`` of :func:`growtas.nn.relative.unroll_tables`."""
        both = self.grid.unroll.to(vertical.dtype) @ torch.cat([vertical, horizontal])
        return both[:-1], both[-1]

    def unroll_backward(self, table: Tensor | None, cls_entry: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Returns the gradients of :meth:`unroll` for the vertical and the horizontal table."""
        if table is None:
            return None, None
        unroll = self.grid.unroll.to(table.dtype)
        halves = [half[:-1].t() @ table for half in unroll.chunk(2, dim=1)]
        if cls_entry is not None:
            # The cls entry is the sum of the first rows of both tables.
            for half in halves:
                half[0] += cls_entry
        return halves[0], halves[1]
