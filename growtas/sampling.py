"""Draws subnets: uniformly, inside a subspace, or under limits; and the mutation and crossover of the evolution.

Every function takes a ``numpy.random.Generator``; none touches global random state.
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
"""Which subnets of a batch meet the limits. Must be monotone: a smaller subnet of a feasible one is feasible."""

_ROUND = 4096
_REJECTION_ROUNDS = 16


def sample_batch(space: SearchSpace, count: int, rng: Generator) -> SubnetBatch:
    """``count`` subnets, each dimension drawn uniformly from its choices, as AutoFormer draws them.

    The depth is uniform too, so a shallow subnet is likelier than a uniform draw over all subnets would have it.
    """
    pairs = np.array(list(product(space.embed_dim, space.depth)))
    return _sample_pairs(space, pairs[rng.integers(len(pairs), size=count)], rng)


def _sample_pairs(space: SearchSpace, pairs: NDArray[np.int64], rng: Generator) -> SubnetBatch:
    """Random blocks for given (embed_dim, depth) rows."""
    shape = (len(pairs), space.depth[-1])
    heads = rng.choice(np.array(space.num_heads), shape)
    ratios = rng.choice(np.array(space.mlp_ratio), shape)
    absent = np.arange(shape[1]) >= pairs[:, 1:]
    heads[absent] = 0
    ratios[absent] = 0
    return SubnetBatch(pairs[:, 0].astype(np.int64), heads, ratios)


def sample(space: SearchSpace, rng: Generator, subspace: Subspace | None = None) -> Subnet:
    """One subnet, uniformly over the choices, from the whole space or from a subspace.

    Raises:
        ConfigError: the subspace is empty.
    """
    return sample_batch(subspace.restrict(space) if subspace else space, 1, rng).subnet(0)


def sample_feasible(space: SearchSpace, count: int, rng: Generator, feasible: Feasible) -> SubnetBatch:
    """``count`` subnets that meet the limits.

    Draws are uniform under the limits as long as rejection finds enough of them. Where legal subnets are rare, what is still
    missing comes from rejected draws that are shrunk, one random choice at a time, until they are legal.

    Args:
        feasible: a monotone predicate over a batch.

    Raises:
        LimitError: not even a smallest subnet is legal.
    """
    pairs = np.array(list(product(space.embed_dim, space.depth)))
    # An (embed_dim, depth) whose smallest blocks are over a limit can never be accepted: leaving it out changes nothing
    # in the distribution and everything in the acceptance rate.
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
    """Lower random heads and ratios by one choice until every row is feasible; (embed_dim, depth) must allow it."""
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
    """Redraw each gene (depth, width, every block's heads and ratio) with a probability; added blocks are drawn anew.

    ``probability`` is the paper's 0.2 (Section 3.3).
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
    """A child that takes its width, its depth and each block's heads and ratio from either parent with equal chance.

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
