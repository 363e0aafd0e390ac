"""Draws random subnets: uniformly, inside a subspace, or under limits; also the evolution's mutation and crossover.

Every function takes a ``numpy.random.Generator`` and leaves the global random state alone.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.errors import LimitError
from growtas.growth import Subspace
from growtas.space import SearchSpace
from growtas.subnet import Subnet

Feasible = Callable[[SubnetBatch], NDArray[np.bool_]]
"""Returns which subnets of a batch meet the limits. It must be monotone: a subnet smaller than a feasible one is feasible."""

_ROUND = 4096
_REJECTION_ROUNDS = 16


def sample_batch(space: SearchSpace, count: int, rng: Generator) -> SubnetBatch:
    """Draws ``count`` subnets, with each dimension uniformly from its choices, as AutoFormer does.

    Since the depth is uniform too, a shallow subnet is more likely than in a uniform draw over all subnets.
    """
    pairs = np.array(list(product(space.embed_dim, space.depth)))
    return _sample_pairs(space, pairs[rng.integers(len(pairs), size=count)], rng)


def _sample_pairs(space: SearchSpace, pairs: NDArray[np.int64], rng: Generator) -> SubnetBatch:
    """Draws random blocks for given rows of (embed_dim, depth)."""
    shape = (len(pairs), space.depth[-1])
    heads = rng.choice(np.array(space.num_heads), shape)
    ratios = rng.choice(np.array(space.mlp_ratio), shape)
    absent = np.arange(shape[1]) >= pairs[:, 1:]
    heads[absent] = 0
    ratios[absent] = 0
    return SubnetBatch(pairs[:, 0].astype(np.int64), heads, ratios)


def sample(space: SearchSpace, rng: Generator, subspace: Subspace | None = None) -> Subnet:
    """Draws one subnet uniformly over the choices of the whole space or of a subspace.

    Raises:
        ConfigError: The subspace is empty.
    """
    return sample_batch(subspace.restrict(space) if subspace else space, 1, rng).subnet(0)


def sample_feasible(space: SearchSpace, count: int, rng: Generator, feasible: Feasible) -> SubnetBatch:
    """Draws ``count`` subnets that meet the limits.

    The draws are uniform under the limits if rejection sampling finds enough subnets. If feasible subnets are rare, the missing
    ones are rejected draws that are shrunk, one random choice at a time, until they are feasible.

    Args:
        space: the search space.
        count: number of subnets.
        rng: the random generator.
        feasible: a monotone predicate over a batch.

    Raises:
        LimitError: Not even a smallest subnet is feasible.
    """
    pairs = np.array(list(product(space.embed_dim, space.depth)))
    # If even the smallest blocks of an (embed_dim, depth) pair exceed a limit, none of its subnets is feasible. Leaving such pairs
    # out does not change the distribution, but raises the acceptance rate.
    floor = SubnetBatch.from_subnets(
        [Subnet(int(e), (space.num_heads[0],) * int(d), (space.mlp_ratio[0],) * int(d)) for e, d in pairs]
    )
    open_pairs = pairs[feasible(floor)]
    if not len(open_pairs):
        raise LimitError(f"no subnet of {space.name} meets the limits")
    accepted: list[SubnetBatch] = []
    missing = count
    rejected: SubnetBatch | None = None
    for _ in range(_REJECTION_ROUNDS):
        draws = _sample_pairs(space, open_pairs[rng.integers(len(open_pairs), size=max(_ROUND, missing))], rng)
        legal = feasible(draws)
        accepted.append(draws[legal][:missing])
        missing -= len(accepted[-1])
        if missing == 0:
            return SubnetBatch.concatenate(accepted)
        rejected = draws[~legal]
    assert rejected is not None
    rows = rng.integers(len(rejected), size=missing)
    accepted.append(_shrink(space, rejected[rows], rng, feasible))
    return SubnetBatch.concatenate(accepted)


def _shrink(space: SearchSpace, batch: SubnetBatch, rng: Generator, feasible: Feasible) -> SubnetBatch:
    """Lowers random heads and ratios by one choice until every row is feasible; its (embed_dim, depth) must allow that."""
    heads, ratios = batch.num_heads.copy(), batch.mlp_ratio.copy()
    head_choices, ratio_choices = np.array(space.num_heads), np.array(space.mlp_ratio)
    columns = heads.shape[1]
    while True:
        current = SubnetBatch(batch.embed_dim, heads, ratios)
        rows = np.flatnonzero(~feasible(current))
        if not len(rows):
            return current
        can_shrink = np.concatenate([heads[rows] > head_choices[0], ratios[rows] > ratio_choices[0]], axis=1)
        if not can_shrink.any(axis=1).all():
            raise LimitError(f"no subnet of {space.name} meets the limits at every width and depth that was drawn")
        gene = np.where(can_shrink, rng.random(can_shrink.shape), -1.0).argmax(axis=1)
        is_head, column = gene < columns, gene % columns
        for values, legal, mask in ((heads, head_choices, is_head), (ratios, ratio_choices, ~is_head)):
            row, col = rows[mask], column[mask]
            values[row, col] = legal[np.maximum(np.searchsorted(legal, values[row, col]) - 1, 0)]


def mutate(space: SearchSpace, subnet: Subnet, rng: Generator, probability: float = 0.2) -> Subnet:
    """Draws each gene (depth, width, every block's heads and ratio) again with a probability; new blocks are drawn at random.

    The default ``probability`` is the paper's 0.2 (Section 3.3).
    """
    depth = int(rng.choice(space.depth)) if rng.random() < probability else subnet.depth
    embed_dim = int(rng.choice(space.embed_dim)) if rng.random() < probability else subnet.embed_dim
    heads, ratios = [], []
    for block in range(depth):
        exists = block < subnet.depth
        redraw = rng.random(2) < probability
        heads.append(subnet.num_heads[block] if exists and not redraw[0] else int(rng.choice(space.num_heads)))
        ratios.append(subnet.mlp_ratio[block] if exists and not redraw[1] else float(rng.choice(space.mlp_ratio)))
    return Subnet(embed_dim, tuple(heads), tuple(ratios))


def crossover(first: Subnet, second: Subnet, rng: Generator) -> Subnet:
    """Makes a child whose width, depth and each block's heads and ratio come from either parent with equal probability.

    A block that only the deeper parent has comes from that parent.
    """
    embed_dim = (first, second)[rng.integers(2)].embed_dim
    depth = (first, second)[rng.integers(2)].depth
    heads, ratios = [], []
    for block in range(depth):
        pool = [parent for parent in (first, second) if block < parent.depth]
        heads.append(pool[rng.integers(len(pool))].num_heads[block])
        ratios.append(pool[rng.integers(len(pool))].mlp_ratio[block])
    return Subnet(embed_dim, tuple(heads), tuple(ratios))
