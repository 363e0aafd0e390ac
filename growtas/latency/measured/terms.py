"""The terms of the latency model. Each term grows with the subnet, so every non-negative sum of terms is monotone.

There are three sets of terms, and each contains the one before. A fit chooses the set that its samples can support:

- ``coarse``: a constant, blocks, MACs, heads and token channels; for a few samples.
- ``physical``: also separate MACs of attention and MLP (they reach different speeds), the numbers of the GELU, and the width.
- ``stepped``: also steps, at which a width, a number of heads or a ratio needs another vector register, thread or cache line, or
  weights no longer fit into a cache. All steps go up, because a smaller subnet must never be predicted slower.

A term may be zero for every subnet of a space. Dimensions with a single choice have no steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.costs import count_costs, stem_and_head_macs
from growtas.space import SearchSpace

BASES = ("coarse", "physical", "stepped")
"""Names of the sets of terms, smallest first."""
CHUNK = 1 << 14
"""Number of subnets that are processed at a time, so that their arrays stay in a core's cache."""
_MAX_STEPS = 3


def term_names(space: SearchSpace, basis: str) -> tuple[str, ...]:
    """Returns the names of the terms in the order of the columns of :func:`terms`. The name of a step contains its threshold."""
    return tuple(name for name, _ in _columns(space, basis, SubnetBatch.from_subnets([space.smallest])))


def terms(space: SearchSpace, basis: str, batch: SubnetBatch) -> NDArray[np.float64]:
    """Returns the terms of each subnet, shape ``(len(batch), len(term_names(space, basis)))``; none is negative.

    MACs are for one image. The number of tokens is part of the coefficients, because all subnets of a space have the same.
    """
    return np.stack([column for _, column in _columns(space, basis, batch)], axis=1)


def weighted_sum(space: SearchSpace, basis: str, batch: SubnetBatch, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns ``terms(space, basis, batch) @ coefficients``, shape ``(len(batch),)``, in little memory for millions of subnets."""
    result = np.zeros(len(batch))
    for start in range(0, len(batch), CHUNK):
        part = slice(start, start + CHUNK)
        for (_, column), coefficient in zip(_columns(space, basis, batch[part]), coefficients, strict=True):
            if coefficient:
                result[part] += coefficient * column
    return result


def _columns(space: SearchSpace, basis: str, batch: SubnetBatch) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yields names and columns. All blocks of a subnet have the same width, so sums over blocks are sufficient."""
    width = batch.embed_dim.astype(np.float64)
    depth = batch.depth.astype(np.float64)
    heads = batch.num_heads.sum(axis=1).astype(np.float64)
    hidden = np.floor(batch.embed_dim[:, None] * batch.mlp_ratio).sum(axis=1)
    tokens, head_dim = space.num_tokens, space.head_dim
    attention, mlp = 4.0 * tokens * head_dim * width * heads, 2.0 * tokens * width * hidden
    scores = 2.0 * tokens * tokens * head_dim * heads
    macs = attention + mlp + scores + stem_and_head_macs(space, width)
    yield "constant", np.ones(len(batch))
    yield "blocks", depth
    yield "heads", heads
    yield "token_channels", depth * width
    yield "macs", macs
    if basis == "coarse":
        return
    yield "embed_dim", width
    yield "attention_macs", attention
    yield "mlp_macs", mlp
    yield "hidden_dim", hidden
    if basis == "physical":
        return
    for threshold in _steps(space.embed_dim):
        reached = (batch.embed_dim >= threshold).astype(np.float64)
        yield f"blocks if embed_dim >= {threshold:g}", reached * depth
        yield f"attention_macs if embed_dim >= {threshold:g}", reached * attention
        yield f"mlp_macs if embed_dim >= {threshold:g}", reached * mlp
    for name, choices, values in (
        ("num_heads", space.num_heads, batch.num_heads),
        ("mlp_ratio", space.mlp_ratio, batch.mlp_ratio),
    ):
        for threshold in _steps(choices):
            count = np.count_nonzero(values >= threshold, axis=1).astype(np.float64)
            yield f"blocks with {name} >= {threshold:g}", count
            yield f"channels of blocks with {name} >= {threshold:g}", count * width
    least, most = (count_costs(space, subnet).macs for subnet in (space.smallest, space.largest))
    for part in (1, 2):
        knee = least + (most - least) * part // 3
        yield f"macs above {knee:g}", np.maximum(macs - knee, 0.0)


def _steps(choices: tuple[float, ...]) -> tuple[float, ...]:
    """Returns the choices from the second on, at most a few spread evenly, because small samples can't distinguish more."""
    above = choices[1:]
    if len(above) <= _MAX_STEPS:
        return above
    return tuple(above[round(i)] for i in np.linspace(0, len(above) - 1, _MAX_STEPS))
