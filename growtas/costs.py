"""Parameters and multiply-accumulates (MACs) of a subnet, as functions of the space and the subnet.

One MAC is a multiplication and an addition, so FLOPs = 2 x MACs; the paper and most ViT tables print MACs under the name
"FLOPs". MACs here count the plain transformer: patch convolution, qkv, QK^T, AV, projection, MLP and head. As in those tables, they
don't count the relative position; :func:`macs_with_relative_position` counts it too. Parameters include everything in a subnet,
also the blocks' relative-position tables, the cls token and the position embeddings.

The same formulas serve a single subnet (Python numbers) and a :class:`growtas.batch.SubnetBatch` (NumPy arrays).
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
    """Costs of one subnet.

    Attributes:
        params: number of parameters.
        macs: multiply-accumulates for one image, without the relative position.
    """

    params: int
    macs: int


def block_params(space: SearchSpace, embed_dim: Any, num_heads: Any, hidden_dim: Any) -> Any:
    """Counts the parameters of one block; arguments are numbers or arrays that broadcast.

    The block has two LayerNorms, qkv and projection (each head has ``head_dim`` channels, independent of ``embed_dim``), the
    two-layer MLP, and with a relative position four tables of ``2 * max_relative_position + 2`` rows.
    """
    attention_dim = num_heads * space.head_dim
    norms = 4 * embed_dim
    qkv = 3 * attention_dim * (embed_dim + 1)
    projection = embed_dim * (attention_dim + 1)
    mlp = hidden_dim * (embed_dim + 1) + embed_dim * (hidden_dim + 1)
    clip = space.max_relative_position
    tables = 4 * (2 * clip + 2) * space.head_dim if clip is not None else 0
    qk_norms = 4 * space.head_dim if space.qk_norm else 0
    return norms + qkv + projection + mlp + tables + qk_norms


def block_macs(space: SearchSpace, embed_dim: Any, num_heads: Any, hidden_dim: Any) -> Any:
    """Counts the MACs of one block for one image; the arguments are those of :func:`block_params`."""
    tokens = space.num_tokens
    attention_dim = num_heads * space.head_dim
    linear = tokens * embed_dim * (4 * attention_dim + 2 * hidden_dim)
    return linear + 2 * tokens * tokens * attention_dim


def stem_and_head_params(space: SearchSpace, embed_dim: Any) -> Any:
    """Counts the parameters outside the blocks: patch convolution, cls token, position embeddings, final LayerNorm, classifier."""
    patch = embed_dim * (space.in_chans * space.patch_size**2 + 1)
    # A plain ViT's tokens before the patches include their positions.
    tokens = space.num_tokens + (0 if space.max_relative_position is None else space.prefix_tokens)
    return patch + embed_dim * tokens + 2 * embed_dim + (embed_dim + 1) * space.num_classes


def stem_and_head_macs(space: SearchSpace, embed_dim: Any) -> Any:
    """Counts the MACs outside the blocks: patch convolution and classifier."""
    patch = space.grid_size**2 * space.in_chans * space.patch_size**2 * embed_dim
    return patch + embed_dim * space.num_classes


def macs_with_relative_position(space: SearchSpace, batch: SubnetBatch) -> NDArray[np.int64]:
    """Counts the MACs of many subnets, including those of the relative position: shape ``(len(batch),)``.

    The relative position is counted by AutoFormer's formula: each query is multiplied with a vector for each key, and each
    attention weight with a vector for each value. These are as many MACs as in the two products of plain attention.
    """
    relative = 2 * space.num_tokens**2 * space.head_dim * batch.num_heads.sum(1) * (space.max_relative_position is not None)
    macs: NDArray[np.int64] = count_costs_batch(space, batch)[1] + relative
    return macs


def count_costs(space: SearchSpace, subnet: Subnet) -> Costs:
    """Counts the parameters and MACs of one subnet, exactly.

    Args:
        space: the space of the subnet, whose image size and number of classes count.
        subnet: the subnet, which may lie outside of the space's choices.
    """
    dim = subnet.embed_dim
    blocks = [(dim, heads, subnet.hidden_dim(i)) for i, heads in enumerate(subnet.num_heads)]
    return Costs(
        params=stem_and_head_params(space, dim) + sum(block_params(space, *block) for block in blocks),
        macs=stem_and_head_macs(space, dim) + sum(block_macs(space, *block) for block in blocks),
    )


def count_costs_batch(space: SearchSpace, batch: SubnetBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts the parameters and MACs of many subnets: two int64 arrays of shape ``(len(batch),)``."""
    dim = batch.embed_dim[:, None]
    hidden = (dim * batch.mlp_ratio).astype(np.int64)
    present = batch.num_heads > 0
    params = np.where(present, block_params(space, dim, batch.num_heads, hidden), 0).sum(1)
    macs = np.where(present, block_macs(space, dim, batch.num_heads, hidden), 0).sum(1)
    return params + stem_and_head_params(space, batch.embed_dim), macs + stem_and_head_macs(space, batch.embed_dim)
