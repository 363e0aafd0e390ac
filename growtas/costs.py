"""Parameters and multiply-accumulates (MACs) of a subnet: pure functions of the space and the subnet.

One MAC is a multiplication and an addition, so FLOPs = 2 x MACs; the paper and most ViT tables print MACs under the name
"FLOPs". MACs here count the plain transformer: patch convolution, qkv, QK^T, AV, projection, MLP and head. The relative
position is left out, as in those tables; :func:`macs_with_relative_position` counts it too. Parameters count everything that a
subnet holds: its blocks' relative-position tables, the cls token and the positions too.

The same formulas run on a single subnet (Python numbers) and on a :class:`growtas.batch.SubnetBatch` (NumPy arrays).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.space import SearchSpace
from growtas.subnet import Subnet


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of one subnet: ``params`` weights, and ``macs`` multiply-accumulates for one image."""

    params: int
    macs: int


def block_params(space: SearchSpace, embed_dim: Any, num_heads: Any, hidden_dim: Any) -> Any:
    """Parameters of one block; arguments are numbers or arrays that broadcast.

    Two LayerNorms, qkv and projection (each head ``head_dim`` wide, whatever ``embed_dim`` is), the two-layer MLP, and four
    tables of ``2 * max_relative_position + 2`` rows.
    """
    attention_dim = num_heads * space.head_dim
    norms = 4 * embed_dim
    qkv = 3 * attention_dim * (embed_dim + 1)
    projection = embed_dim * (attention_dim + 1)
    mlp = hidden_dim * (embed_dim + 1) + embed_dim * (hidden_dim + 1)
    tables = 4 * (2 * space.max_relative_position + 2) * space.head_dim
    return norms + qkv + projection + mlp + tables


def block_macs(space: SearchSpace, embed_dim: Any, num_heads: Any, hidden_dim: Any) -> Any:
    """MACs of one block for one image; arguments as in :func:`block_params`."""
    tokens = space.num_tokens
    attention_dim = num_heads * space.head_dim
    linear = tokens * embed_dim * (4 * attention_dim + 2 * hidden_dim)
    return linear + 2 * tokens * tokens * attention_dim


def stem_and_head_params(space: SearchSpace, embed_dim: Any) -> Any:
    """Parameters outside the blocks: patch convolution, cls token, positions, final LayerNorm, classifier."""
    patch = embed_dim * (space.in_chans * space.patch_size**2 + 1)
    return patch + embed_dim * (1 + space.num_tokens) + 2 * embed_dim + (embed_dim + 1) * space.num_classes


def stem_and_head_macs(space: SearchSpace, embed_dim: Any) -> Any:
    """MACs outside the blocks: patch convolution and classifier."""
    patch = (space.num_tokens - 1) * space.in_chans * space.patch_size**2 * embed_dim
    return patch + embed_dim * space.num_classes


def macs_with_relative_position(space: SearchSpace, batch: SubnetBatch) -> NDArray[np.int64]:
    """MACs of many subnets, those of :func:`count_costs_batch` and of the relative position: shape ``(len(batch),)``.

    The relative position is counted as AutoFormer's formula writes it. Each query is multiplied with a vector for each key, and
    each attention weight with a vector for each value: as many MACs as the two products of plain attention.
    """
    relative = 2 * space.num_tokens**2 * space.head_dim * batch.num_heads.sum(1)
    macs: NDArray[np.int64] = count_costs_batch(space, batch)[1] + relative
    return macs


def count_costs(space: SearchSpace, subnet: Subnet) -> Costs:
    """Params and MACs of one subnet, exactly."""
    dim = subnet.embed_dim
    blocks = [(dim, heads, subnet.hidden_dim(i)) for i, heads in enumerate(subnet.num_heads)]
    return Costs(
        params=stem_and_head_params(space, dim) + sum(block_params(space, *block) for block in blocks),
        macs=stem_and_head_macs(space, dim) + sum(block_macs(space, *block) for block in blocks),
    )


def count_costs_batch(space: SearchSpace, batch: SubnetBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Params and MACs of many subnets at once: two int64 arrays of shape ``(len(batch),)``."""
    dim = batch.embed_dim[:, None]
    hidden = (dim * batch.mlp_ratio).astype(np.int64)
    present = batch.num_heads > 0
    params = np.where(present, block_params(space, dim, batch.num_heads, hidden), 0).sum(1)
    macs = np.where(present, block_macs(space, dim, batch.num_heads, hidden), 0).sum(1)
    return params + stem_and_head_params(space, batch.embed_dim), macs + stem_and_head_macs(space, batch.embed_dim)
