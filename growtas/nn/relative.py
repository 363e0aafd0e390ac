"""2-D relative position on keys and values, computed as plain attention.

AutoFormer adds to the key of every query-key pair a vector that depends on the clipped row and column distance,
``r_k[i,j] = Tv[.] + Th[.]``, and does the same for values. Computed directly, this needs an (N, N, head_dim) tensor. This module
avoids it. For a patch query at grid position (r, c)::

    q_i . r_k[i,j] = R_i[row_j] + C_i[col_j]

with one number per grid row and one per grid column. So the logit is the dot product of two longer vectors,
``[q_i, R_i, C_i]`` and ``[k_j, onehot(row_j), onehot(col_j)]``. For values, attention over
``[v_j, onehot(row_j), onehot(col_j)]`` gives the attention mass on each row and column, and the masses times the tables are the
relative values. The result is standard scaled-dot-product attention with ``head_dim + rows + cols`` channels.

The cls token, for which both tables use index 0, needs no channel:

* As a key: softmax does not change if a constant is added to a row of logits. So ``q_i . (Tv[0] + Th[0])`` is subtracted from the
  row by subtracting the constant vector from ``Th``. The relative term of the cls key is then zero.
* As a query: it has the same relative key for every j, which softmax ignores. R and C are zero.
* As a value: the masses of all keys sum to one. So ``Tv[0] + Th[0]`` is a constant of the output, if it is also subtracted from the
  table entries of patches.

R and C are gathered with a constant index from ``P = q T^T``, where T contains both tables unrolled over all distances (a few dozen
rows). The inverse gather brings the masses into the order of the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class GridIndex:
    """Constant indices of a grid of ``rows`` x ``cols`` patches after one cls token; ``N = rows * cols + 1``.

    The number of grid lines is ``S = rows + cols``, the number of distances ``P = 2*rows-1 + 2*cols-1``. They are padded by at
    least one to multiples of 8, ``L`` and ``D``. Kernels are faster with such sizes, and the padding is a zero for "no term".

    Attributes:
        row_entries: rows of the vertical table for the distances -(rows-1) .. rows-1, clipped; shape ``(2*rows-1,)``.
        col_entries: the same for the horizontal table; shape ``(2*cols-1,)``.
        lines: for each query and grid line the index of its distance, or of the padding; shape ``(N, L)``.
        distances: the inverse: for each query and distance the index of its grid line, or of the padding; shape ``(N, D)``.
        onehot: row and column of each token, zeros for cls and the padding; shape ``(N, L)``, float32.
        unroll: :func:`unroll_tables` as a matrix on both tables, vertical first. ``D`` rows give the table, the last row gives the
            cls entry; shape ``(D + 1, 2 * (2 * max_relative_position + 2))``, float32.
        num_lines: ``S``.
    """

    row_entries: Tensor
    col_entries: Tensor
    lines: Tensor
    distances: Tensor
    onehot: Tensor
    unroll: Tensor
    num_lines: int


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def grid_index(rows: int, cols: int, max_relative_position: int, device: str = "cpu") -> GridIndex:
    """Returns the indices of a grid, computed once per grid and device. Compilers treat them as constants."""
    return compute_grid_index(rows, cols, max_relative_position, device)


@lru_cache(maxsize=64)
def compute_grid_index(rows: int, cols: int, max_relative_position: int, device: str) -> GridIndex:
    """Computes the result of :func:`grid_index`. Separate because a compiler can't trace it and would repeat it in every call."""
    # Cached tensors are used in other modes and on other devices later, so they must be ordinary CPU tensors.
    with torch.inference_mode(False), torch.device("cpu"):
        position = torch.arange(rows * cols)
        row, col = position // cols, position % cols
        num_lines, num_distances = rows + cols, 2 * rows - 1 + 2 * cols - 1
        lines = torch.full((rows * cols + 1, _padded(num_lines)), num_distances)
        lines[1:, :rows] = torch.arange(rows) - row[:, None] + rows - 1
        lines[1:, rows:num_lines] = torch.arange(cols) - col[:, None] + cols - 1 + (2 * rows - 1)
        distances = torch.full((rows * cols + 1, _padded(num_distances)), num_lines)
        distances[1:].scatter_(1, lines[1:, :num_lines], torch.arange(num_lines).expand(rows * cols, -1))
        onehot = torch.zeros(rows * cols + 1, _padded(num_lines))
        onehot[1:].scatter_(1, row[:, None], 1.0)
        onehot[1:].scatter_(1, rows + col[:, None], 1.0)

        def entries(length: int) -> Tensor:
            offset = torch.arange(-(length - 1), length)
            return offset.clamp(-max_relative_position, max_relative_position) + max_relative_position + 1

        height = 2 * max_relative_position + 2
        unroll = torch.zeros(distances.shape[1] + 1, 2 * height)
        unroll[: 2 * rows - 1].scatter_(1, entries(rows)[:, None], 1.0)
        unroll[2 * rows - 1 : num_distances].scatter_(1, height + entries(cols)[:, None], 1.0)
        unroll[2 * rows - 1 : num_distances, [0, height]] = -1.0
        unroll[-1, [0, height]] = 1.0
        tensors = (entries(rows), entries(cols), lines, distances, onehot, unroll)
    row_entries, col_entries, lines, distances, onehot, unroll = (tensor.to(device) for tensor in tensors)
    return GridIndex(row_entries, col_entries, lines, distances, onehot, unroll, num_lines)


def _padded(count: int) -> int:
    """Returns the next multiple of 8 above ``count``."""
    return count // 8 * 8 + 8


def unroll_tables(vertical: Tensor, horizontal: Tensor, grid: GridIndex) -> tuple[Tensor, Tensor]:
    """Unrolls both tables over all distances of the grid, and subtracts the cls entry once.

    Args:
        vertical, horizontal: the tables, ``(2 * max_relative_position + 2, head_dim)``; entry 0 is for pairs with the cls token.
        grid: indices of the grid.

    Returns:
        The table ``(D, head_dim)``, padded with zeros, and the cls entry ``vertical[0] + horizontal[0]``, ``(head_dim,)``.
    """
    cls_entry = vertical[0] + horizontal[0]
    table = torch.cat([vertical[grid.row_entries], horizontal[grid.col_entries] - cls_entry])
    return F.pad(table, (0, 0, 0, grid.distances.shape[1] - table.shape[0])), cls_entry


def relative_attention(
    qkv: Tensor, key_tables: tuple[Tensor, Tensor], value_tables: tuple[Tensor, Tensor], heads: int, grid: GridIndex
) -> Tensor:
    """Attention with 2-D relative position on keys and values (AutoFormer, Section 3; see the docstring of this module).

    This is the general form by scaled_dot_product_attention, for GPUs, exporters and autocast. :mod:`growtas.nn.fused.attention`
    computes the same on the CPU.

    Args:
        qkv: q, k and v, each head by head, ``(batch, N, 3 * heads * head_dim)``.
        key_tables, value_tables: (vertical, horizontal), each ``(2 * max_relative_position + 2, head_dim)``.
        heads: number of heads.
        grid: indices of the grid of these N tokens.

    Returns:
        ``(batch, N, heads * head_dim)``. The logits including the relative term are scaled by ``head_dim ** -0.5``.
    """
    key_table, _ = unroll_tables(*key_tables, grid)
    value_table, cls_value = unroll_tables(*value_tables, grid)
    batch, tokens, width = qkv.shape
    head_dim = width // (3 * heads)
    q, k, v = qkv.view(batch, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    every = (batch, heads, -1, -1)
    terms = F.linear(q, key_table.to(q.dtype)).gather(-1, grid.lines.expand(every))
    onehot = grid.onehot.to(q.dtype).expand(every)
    attended = F.scaled_dot_product_attention(
        torch.cat([q, terms], -1), torch.cat([k, onehot], -1), torch.cat([v, onehot], -1), scale=head_dim**-0.5
    )
    masses = attended[..., head_dim:].gather(-1, grid.distances.expand(every))
    out = attended[..., :head_dim] + masses @ value_table.to(q.dtype)
    return out.transpose(1, 2).reshape(batch, tokens, heads * head_dim) + cls_value.to(qkv.dtype).repeat(heads)
