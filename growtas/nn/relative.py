"""2-D relative position on keys and values, as plain attention.

AutoFormer adds to every query-key pair a vector looked up by the clipped row and column distance, ``r_k[i,j] = Tv[.] + Th[.]``,
and likewise to every value. Written out that is an (N, N, head_dim) tensor. It is not needed. For a patch query at grid
position (r, c)::

    q_i . r_k[i,j] = R_i[row_j] + C_i[col_j]

with one number per grid row and one per grid column, so the logit is the dot product of two longer vectors,
``[q_i, R_i, C_i]`` and ``[k_j, onehot(row_j), onehot(col_j)]``. Values work the same way backwards: attending over
``[v_j, onehot(row_j), onehot(col_j)]`` yields the attention mass on each row and column, and the masses times the tables are the
relative values. What is left is standard scaled-dot-product attention with ``head_dim + rows + cols`` channels.

The cls token, which both tables look up at index 0, costs no channel of its own:

* As a key: softmax ignores what is added to a whole row of logits, so ``q_i . (Tv[0] + Th[0])`` is subtracted from the row, that
  is, the constant vector is subtracted from ``Th``. The cls key is then left with zero.
* As a query: it has the same relative key for every j, which softmax ignores. R and C are zero.
* As a value: the masses of all keys add up to one, so ``Tv[0] + Th[0]`` is a constant of the output and, after subtracting it from
  ``Tv`` where a patch is meant, nothing else is left of it.

R and C come from ``P = q T^T`` (T: both tables unrolled over all distances, a few dozen rows) by a gather with a constant index;
the masses go back into the tables' order by the inverse gather.
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

    ``P`` stands for ``2*rows-1 + 2*cols-1`` distances, ``S`` for ``rows + cols`` grid lines.

    Attributes:
        row_entries: rows of the vertical table for the distances -(rows-1) .. rows-1, clipped; shape ``(2*rows-1,)``.
        col_entries: the same for the horizontal table; shape ``(2*cols-1,)``.
        lines: for each query and grid line the column of ``P`` that holds its term; ``P`` itself means zero; shape ``(N, S)``.
        distances: the inverse: for each query and distance the grid line, ``S`` means zero; shape ``(N, P + 1)``.
        onehot: row and column of each token, zeros for cls; shape ``(N, S)``, float32.
    """

    row_entries: Tensor
    col_entries: Tensor
    lines: Tensor
    distances: Tensor
    onehot: Tensor


@lru_cache(maxsize=64)
def grid_index(rows: int, cols: int, max_relative_position: int, device: str = "cpu") -> GridIndex:
    """The indices of a grid, computed once a grid and device."""
    with torch.inference_mode(False), torch.device("cpu"):
        position = torch.arange(rows * cols)
        row, col = position // cols, position % cols
        wide, lines_total = 2 * rows - 1 + 2 * cols - 1, rows + cols
        lines = torch.full((rows * cols + 1, lines_total), wide)
        lines[1:, :rows] = torch.arange(rows) - row[:, None] + rows - 1
        lines[1:, rows:] = torch.arange(cols) - col[:, None] + cols - 1 + (2 * rows - 1)
        distances = torch.full((rows * cols + 1, wide + 1), lines_total)
        distances[1:].scatter_(1, lines[1:], torch.arange(lines_total).expand(rows * cols, -1))
        onehot = torch.zeros(rows * cols + 1, lines_total)
        onehot[1:].scatter_(1, row[:, None], 1.0)
        onehot[1:].scatter_(1, rows + col[:, None], 1.0)

        def entries(length: int) -> Tensor:
            offset = torch.arange(-(length - 1), length)
            return offset.clamp(-max_relative_position, max_relative_position) + max_relative_position + 1

        index = GridIndex(entries(rows), entries(cols), lines, distances, onehot)
    return GridIndex(*(getattr(index, field).to(device) for field in GridIndex.__dataclass_fields__))


def unroll_tables(vertical: Tensor, horizontal: Tensor, grid: GridIndex) -> tuple[Tensor, Tensor]:
    """Both tables over all distances of the grid, with the cls entry subtracted once.

    Args:
        vertical, horizontal: ``(2 * max_relative_position + 2, head_dim)``, entry 0 for pairs with the cls token.

    Returns:
        The ``(P, head_dim)`` table, and the cls entry ``vertical[0] + horizontal[0]``, ``(head_dim,)``.
    """
    cls_entry = vertical[0] + horizontal[0]
    return torch.cat([vertical[grid.row_entries], horizontal[grid.col_entries] - cls_entry]), cls_entry


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_tables: tuple[Tensor, Tensor],
    value_tables: tuple[Tensor, Tensor],
    grid: GridIndex,
    scale: float,
) -> Tensor:
    """Attention with 2-D relative position on keys and values (AutoFormer, Section 3; layout in the module's text).

    Args:
        q, k, v: ``(batch, heads, N, head_dim)``.
        key_tables, value_tables: (vertical, horizontal), each ``(2 * max_relative_position + 2, head_dim)``.
        grid: the indices for these N tokens.
        scale: factor on the logits, relative term included.

    Returns:
        ``(batch, heads, N, head_dim)``.
    """
    head_dim = q.shape[-1]
    lines = grid.onehot.shape[1]
    key_table, _ = unroll_tables(*key_tables, grid)
    value_table, cls_value = unroll_tables(*value_tables, grid)
    # One more row of zeros: the entry that the gathers use where there is nothing to add.
    key_table = F.pad(key_table, (0, 0, 0, 1))
    value_table = F.pad(value_table, (0, 0, 0, 1))
    terms = F.linear(q, key_table).gather(-1, grid.lines.expand(*q.shape[:2], -1, -1))
    # Flash kernels want a multiple of 8 channels, and the way back wants one column of zero mass.
    spare = -(head_dim + lines + 1) % 8 + 1
    onehot = F.pad(grid.onehot.to(k.dtype), (0, spare)).expand(*k.shape[:2], -1, -1)
    attended = F.scaled_dot_product_attention(
        torch.cat([q, F.pad(terms, (0, spare))], -1),
        torch.cat([k, onehot], -1),
        torch.cat([v, onehot], -1),
        scale=scale,
    )
    masses = attended[..., head_dim : head_dim + lines + 1].gather(-1, grid.distances.expand(*q.shape[:2], -1, -1))
    return attended[..., :head_dim] + (masses @ value_table + cls_value)
