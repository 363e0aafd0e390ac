"""Many subnets as NumPy arrays, which are sampled and costed with one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from growtas.subnet import Subnet


@dataclass(frozen=True)
class SubnetBatch:
    """``n`` subnets: rows are subnets, columns are blocks, and missing blocks are zero.

    Attributes:
        embed_dim: shape ``(n,)``, int64.
        num_heads: shape ``(n, max depth)``, int64.
        mlp_ratio: shape ``(n, max depth)``, float64.
    """

    embed_dim: NDArray[np.int64]
    num_heads: NDArray[np.int64]
    mlp_ratio: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.embed_dim)

    @property
    def depth(self) -> NDArray[np.int64]:
        """Number of blocks of each subnet, shape ``(n,)``."""
        return np.count_nonzero(self.num_heads, axis=1)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.int64] | slice) -> SubnetBatch:
        return SubnetBatch(self.embed_dim[rows], self.num_heads[rows], self.mlp_ratio[rows])

    def subnet(self, row: int) -> Subnet:
        """Returns row ``row`` as a :class:`Subnet`."""
        depth = int(np.count_nonzero(self.num_heads[row]))
        heads, ratios = self.num_heads[row, :depth].tolist(), self.mlp_ratio[row, :depth].tolist()
        return Subnet(int(self.embed_dim[row]), tuple(heads), tuple(ratios))

    def __iter__(self) -> Iterator[Subnet]:
        return (self.subnet(row) for row in range(len(self)))

    @classmethod
    def from_subnets(cls, subnets: Sequence[Subnet]) -> SubnetBatch:
        """Makes a batch of subnets, in their order."""
        columns = max((subnet.depth for subnet in subnets), default=1)
        heads = np.zeros((len(subnets), columns), np.int64)
        ratios = np.zeros((len(subnets), columns), np.float64)
        # Rows of the same depth are assigned together: row by row would take most of the time of costing 100,000 subnets.
        rows_of: dict[int, list[int]] = {}
        for row, subnet in enumerate(subnets):
            rows_of.setdefault(subnet.depth, []).append(row)
        for depth, rows in rows_of.items():
            heads[rows, :depth] = [subnets[row].num_heads for row in rows]
            ratios[rows, :depth] = [subnets[row].mlp_ratio for row in rows]
        return cls(np.array([subnet.embed_dim for subnet in subnets], np.int64), heads, ratios)

    @classmethod
    def concatenate(cls, batches: Sequence[SubnetBatch]) -> SubnetBatch:
        """Concatenates batches; shallower batches are padded with missing blocks."""
        columns = max(batch.num_heads.shape[1] for batch in batches)

        def widen(array: NDArray[np.generic]) -> NDArray[np.generic]:
            return np.pad(array, ((0, 0), (0, columns - array.shape[1])))

        return cls(
            np.concatenate([batch.embed_dim for batch in batches]),
            np.concatenate([widen(batch.num_heads) for batch in batches]),
            np.concatenate([widen(batch.mlp_ratio) for batch in batches]),
        )
